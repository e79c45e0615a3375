"""Whether a request can ever run on this engine, asked before it is queued."""

from __future__ import annotations

import itertools

from pelton.errors import RequestError
from pelton.manifest import EngineLimits
from pelton.types import Request


def max_total_tokens(limits: EngineLimits) -> int:
    """Prompt plus output tokens that one sequence alone can reach; the last one needs no place in the cache."""
    return min(limits.max_seq_len, limits.num_blocks * limits.tokens_per_block + 1)


def check_request(request: Request, limits: EngineLimits, *, is_chunked: bool) -> None:
    """Refuses what can never run.

    Raises:
        RequestError: the prompt is empty or too long, or an id is outside the vocabulary; the text says what would fit.
    """
    num_tokens = len(request.input_token_ids)
    if not num_tokens:
        raise RequestError("input_token_ids must hold at least one token", param="input_token_ids")
    bounds = [
        (limits.max_input_len, "the engine's max_input_len"),
        (limits.max_seq_len - 1, "the engine's max_seq_len less one token of output"),
        (limits.num_blocks * limits.tokens_per_block,
         f"all {limits.num_blocks} blocks of {limits.tokens_per_block} tokens of the KV cache"),
    ]
    if not is_chunked:
        bounds.append((limits.max_num_tokens, "max_num_tokens, as enable_chunked_prefill is off"))
    most, reason = min(bounds)
    if num_tokens > most:
        raise RequestError(f"input_token_ids holds {num_tokens} tokens; at most {most} fit ({reason})",
                           param="input_token_ids", code="context_length_exceeded")
    params = request.sampling_params
    for name, token_ids in (
        ("input_token_ids", request.input_token_ids),
        ("end_ids", request.end_ids),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
        ("bad_words_token_ids", itertools.chain.from_iterable(params.bad_words_token_ids)),
    ):
        _check_vocabulary(name, list(token_ids or ()), limits.vocab_size)


def _check_vocabulary(name: str, token_ids: list[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise RequestError(f"{name} must name tokens from 0 to {vocab_size - 1}, got {wrong}", param=name)
