"""From the fields of a request to the engine's sampling parameters, held against the engine's limits."""

from __future__ import annotations

from typing import Any

from pelton.engine.messages import Ready
from pelton.errors import RequestError
from pelton.server.openai.protocol import GenerationFields
from pelton.server.state import ServerState
from pelton.types import SamplingParams

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_LIST = 1024
"""Entries of logit_bias, stop_token_ids and bad_words: one request's lists cost every step."""
_PLAIN = ("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
          "seed", "min_tokens", "ignore_eos", "skip_special_tokens", "include_stop_str_in_output")


def make_sampling(fields: GenerationFields, state: ServerState, *, max_tokens: int | None,
                  logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
    """Sampling parameters of a request; what it leaves out takes the model's default, then SamplingParams'.

    Args:
        max_tokens: as resolved by `resolve_max_tokens`.
        logprobs: likeliest tokens to report per output token; None: no log-probabilities.
        prompt_logprobs: the same per prompt token.

    Raises:
        RequestError: a value is out of range; `param` names the field.
    """
    ready = state.client.ready
    asked = {name: value for name in _PLAIN if (value := getattr(fields, name)) is not None}
    values: dict[str, Any] = {**state.sampling_defaults, **asked}
    if fields.stop is not None:
        values["stop"] = _stops(fields.stop)
    if fields.stop_token_ids:
        values["stop_token_ids"] = tuple(_at_most(fields.stop_token_ids, "stop_token_ids"))
        check_vocabulary(fields.stop_token_ids, ready, param="stop_token_ids")
    if fields.bad_words:
        words = _at_most(fields.bad_words, "bad_words")
        _check_lengths(words, "bad_words")
        values["bad_words"] = tuple(words)
        values["bad_words_token_ids"] = state.tokenizer.encode_bad_words(words)
    if fields.logit_bias:
        values["logit_bias"] = _logit_bias(fields.logit_bias, ready.vocab_size)
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs, **values)


def resolve_max_tokens(asked: int | None, default: int | None, num_prompt_tokens: int, ready: Ready, *,
                       param: str = "max_tokens") -> int:
    """How many tokens a prompt may get.

    Args:
        asked: the request's own limit; it must fit behind the prompt.
        default: the limit where none is asked, cut to what fits; None: all that fits.
        param: how the request spells its limit.

    Raises:
        RequestError: prompt and output do not fit the engine; the text names its limits.
    """
    room = ready.max_seq_len - num_prompt_tokens
    if asked is not None and asked < 1:
        raise RequestError(f"{param} must be at least 1, got {asked}", param=param)
    if asked is not None and asked > room:
        raise RequestError(
            f"this model's maximum context length is {ready.max_seq_len} tokens: the prompt has {num_prompt_tokens}, "
            f"so {param} can be at most {room}, got {asked}", param=param, code="context_length_exceeded")
    return asked if asked is not None else min(default or room, room)


def check_prompt(ids: list[int], ready: Ready, *, param: str) -> None:
    """Refuses a prompt that the engine cannot take.

    Raises:
        RequestError: it is empty, too long, or has ids outside the vocabulary.
    """
    if not ids:
        raise RequestError(f"{param} is empty: give at least one token", param=param, code="empty_prompt")
    longest = min(ready.max_input_len, ready.max_seq_len - 1, ready.num_blocks * ready.tokens_per_block)
    if len(ids) > longest:
        raise RequestError(
            f"{param} has at least {len(ids)} tokens, but this engine takes prompts of at most {longest} tokens and "
            f"sequences of at most {ready.max_seq_len}; shorten it", param=param, code="context_length_exceeded")
    check_vocabulary(ids, ready, param=param)


def check_vocabulary(ids: list[int], ready: Ready, *, param: str) -> None:
    """Raises RequestError if one of the token ids, of which there is at least one, is none of the model's."""
    worst = max(ids) if min(ids) >= 0 else min(ids)
    if not 0 <= worst < ready.vocab_size:
        raise RequestError(f"{param} holds token id {worst}; ids are 0 to {ready.vocab_size - 1}", param=param)


def _stops(stop: str | list[str]) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    _check_lengths(_at_most(stops, "stop", MAX_STOPS), "stop")
    return tuple(stops)


def _at_most(values: list[Any], param: str, limit: int = MAX_LIST) -> list[Any]:
    if len(values) > limit:
        raise RequestError(f"{param} may have at most {limit} entries, got {len(values)}", param=param)
    return values


def _check_lengths(texts: list[str], param: str) -> None:
    if any(len(text) > MAX_STOP_CHARS for text in texts):
        raise RequestError(f"{param}: a string may have at most {MAX_STOP_CHARS} characters", param=param)


def _logit_bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    _at_most(list(biases), "logit_bias")
    out = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10) or int(key) >= vocab_size:
            raise RequestError(f"logit_bias: keys are token ids from 0 to {vocab_size - 1}, got {key[:64]!r}",
                               param="logit_bias")
        out[int(key)] = bias
    return out
