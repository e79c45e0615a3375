"""The nouns that cross package borders: sampling parameters, requests, sequences, batches, outputs.

Plain data without tensors. Everything here except `Sequence` is a msgspec Struct, so that it can cross a process
border as msgpack.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from pelton.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_LOGPROBS = 20  # as in the OpenAI API

_request_numbers = itertools.count()


def _check(ok: bool, param: str, value: object, want: str) -> None:
    if not ok:
        raise RequestError(f"{param} must be {want}, got {value!r}", param=param)


def _are_ids(values: Iterable[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


_FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_INTS = ("n", "top_k", "min_tokens", "seed", "max_tokens", "logprobs", "prompt_logprobs")
_LISTS = ("stop", "bad_words", "stop_token_ids", "bad_words_token_ids")
_OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the next token is chosen and when to stop. Names follow vLLM and the OpenAI API.

    Raises:
        RequestError: a value is out of range; `param` names the field.
    """

    n: int = 1
    """Completions per prompt; completion i draws from seed + i."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches this."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides (multiplies, if negative) the logits of tokens in the prompt or the output (Keskar et al. 2019)."""
    logit_bias: dict[int, float] | None = None
    """Token id -> added to its logit, -100 to 100."""
    seed: int | None = None
    """The random stream is a function of seed and position alone; None draws a fresh seed per request."""
    stop: tuple[str, ...] = ()
    """Strings that end the output; matched where text is made."""
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    """Strings whose token sequences are never completed."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """The same as token ids; filled in where the tokenizer is."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before this many output tokens."""
    max_tokens: int | None = 16
    """None: up to the engine's maximum sequence length."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Log-probabilities of the chosen token and of this many likeliest ones, per output token."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        _check(1 <= self.n <= 128, "n", self.n, "between 1 and 128")
        _check(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "between 0 and 100")
        _check(-1 <= self.top_k < 2**31, "top_k", self.top_k, "0 or -1 (keep all) or a positive count")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        _check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "between -2 and 2")
        _check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "between -2 and 2")
        _check(0.0 < self.repetition_penalty <= 100.0, "repetition_penalty", self.repetition_penalty,
               "above 0 and at most 100")
        for bias in (self.logit_bias or {}).values():
            _check(-100.0 <= bias <= 100.0, "logit_bias", bias, "between -100 and 100")
        if self.seed is not None:
            _check(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        _check(self.detokenize or not self.stop, "stop", self.stop, "empty with detokenize=False, as it matches text")
        if self.max_tokens is not None:
            _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
            _check(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens,
                   f"at most max_tokens ({self.max_tokens})")
        _check(0 <= self.min_tokens < 2**31, "min_tokens", self.min_tokens, "0 or more and below 2**31")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"between 0 and {MAX_LOGPROBS}")

    def _check_types(self) -> None:
        """Python's constructor takes anything: numbers and lists of other libraries become plain ones."""
        for name in _FLOATS:
            value = getattr(self, name)
            if type(value) is not float and type(value) is not int:
                _check(isinstance(value, numbers.Real) and value is not True and value is not False, name, value,
                       "a number")
                self._set(name, float(value))
            _check(math.isfinite(value), name, value, "a finite number")
        for name in _INTS:
            value = getattr(self, name)
            if type(value) is not int and (value is not None or name not in _OPTIONAL):
                _check(hasattr(value, "__index__") and not isinstance(value, bool), name, value, "an integer")
                self._set(name, operator.index(value))
        for name in _LISTS:
            value = getattr(self, name)
            if type(value) is not tuple:
                _check(isinstance(value, (str, list)), name, value, "a list")
                self._set(name, (value,) if isinstance(value, str) else tuple(value))
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            _check(all(isinstance(text, str) and text for text in value), name, value, "a list of non-empty strings")
        _check(_are_ids(self.stop_token_ids), "stop_token_ids", self.stop_token_ids, "a list of token ids")
        words, bias = self.bad_words_token_ids, self.logit_bias
        _check(all(isinstance(ids, (list, tuple)) and ids and _are_ids(ids) for ids in words), "bad_words_token_ids",
               words, "a list of non-empty lists of token ids")
        is_bias = isinstance(bias, dict) and _are_ids(bias) and all(type(b) in (int, float) for b in bias.values())
        _check(bias is None or is_bias, "logit_bias", bias, "numbers keyed by token ids")

    def _set(self, name: str, value: object) -> None:
        msgspec.structs.force_setattr(self, name, value)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_counts(self) -> bool:
        """Whether the sampler must know which tokens occurred."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)


class Request(msgspec.Struct):
    """One prompt and what is wanted of it.

    `max_new_tokens`, when given, takes the place of `sampling_params.max_tokens`.
    """

    input_token_ids: list[int]
    max_new_tokens: int | None = None
    sampling_params: SamplingParams = SamplingParams()
    request_id: str = ""
    end_ids: tuple[int, ...] = ()
    """End-of-sequence ids; the engine's own when empty."""
    priority: int = 0
    """Higher runs first; equal ones in order of arrival."""
    cache_salt: str = ""
    """Only requests with the same salt share cached prefixes."""
    arrival_time: float = 0.0
    """time.monotonic() at the server's door, in seconds."""

    def __post_init__(self) -> None:
        if not self.request_id:
            self.request_id = f"r{next(_request_numbers)}"
        if not self.arrival_time:
            self.arrival_time = time.monotonic()
        _check(math.isfinite(self.arrival_time), "arrival_time", self.arrival_time, "a finite number of seconds")
        if self.max_new_tokens is not None:
            self.sampling_params = msgspec.structs.replace(self.sampling_params, max_tokens=self.max_new_tokens)


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Natural-log probabilities at one position, before temperature, of the chosen token first, then the likeliest."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int
    """Rank of the chosen token, 1 = likeliest."""


class Output(msgspec.Struct, array_like=True):
    """News about one completion of one request: the tokens since the last news, perhaps its end."""

    request_id: str
    index: int
    """Which of the request's n completions."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Once, with the first token: one entry per prompt token; the first prompt token has none."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token id or string that ended it; None for end-of-sequence."""
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
    error: str | None = None
    error_kind: str | None = None
    """Class name of a PeltonError where the engine refused the request; None where it failed at it."""


class SlotInit(msgspec.Struct, array_like=True):
    """A sequence takes a slot: all the runner needs to know of it from now on."""

    slot: int
    token_ids: list[int]
    """All known tokens: the prompt, then what was generated before a preemption."""
    num_prompt_tokens: int
    block_ids: list[int]
    """The blocks it starts with, cached prefix first."""
    sampling: SamplingParams
    seed: int
    """64-bit, resolved (never None), with the completion's index already added."""
    end_ids: tuple[int, ...]
    """Ids banned while fewer than `sampling.min_tokens` output tokens exist (end-of-sequence and stop ids)."""


class Batch(msgspec.Struct, array_like=True):
    """What one step runs, as a delta over stable slots: only what changed since the last step.

    Row i runs tokens [starts[i], starts[i] + num_tokens[i]) of the sequence in slots[i]. The first `num_decodes` rows
    run one token each, the slot's last sampled one, which may still be on its way: it never leaves the device. The
    other rows' tokens are all known and were handed over in `new`. Order of application: freed, new, new_blocks, rows.
    """

    step_id: int
    slots: list[int]
    starts: list[int]
    num_tokens: list[int]
    is_sampled: list[bool]
    """Whether the row ends at the sequence's last token, so that a next token is drawn."""
    num_decodes: int
    new: list[SlotInit]
    new_blocks: list[tuple[int, list[int]]]
    """(slot, block ids appended to its table)."""
    freed: list[int]
    """Slots whose sequences left."""

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)

    @property
    def sampled_slots(self) -> list[int]:
        return [slot for slot, sampled in zip(self.slots, self.is_sampled, strict=True) if sampled]


Masks = dict[int, list[int]]
"""Slot -> token ids that must not be drawn in this step; made on the host (multi-token bad words, grammars)."""


class StepOutput(msgspec.Struct, array_like=True):
    """What one step drew: entry j belongs to the j-th sampled row of its batch."""

    step_id: int
    slots: list[int]
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    """Per sampled row; None where the row asked for none."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None
    """Slot -> one entry per token of this step's chunk, each scoring the token that follows it in the prompt."""


class Sequence:
    """One completion on its way through the engine; the scheduler's own record of it.

    Two counts tell overlap apart from knowledge: `num_scheduled` tokens have been launched (their keys and values
    exist once the launched steps are done), `len(token_ids)` are known by value. In between lie tokens in flight.
    """

    __slots__ = ("arrival", "awaited_key", "bad_words", "block_ids", "block_keys", "end_ids", "finish_reason", "index",
                 "kv_variant", "last_step", "max_len", "max_num_blocks", "num_cached_tokens", "num_in_flight",
                 "num_keyed_blocks", "num_prefill_tokens", "num_prompt_tokens", "num_scheduled", "prompt_logprobs",
                 "rank", "request", "seed", "slot", "stop_ids", "stop_reason", "token_ids")

    def __init__(self, request: Request, *, index: int, arrival: int, seed: int, end_ids: tuple[int, ...]):
        self.request = request
        self.index = index
        self.arrival = arrival
        self.seed = seed
        self.end_ids = end_ids
        self.token_ids: list[int] = list(request.input_token_ids)
        self.num_prompt_tokens = len(request.input_token_ids)
        self.num_scheduled = 0
        self.num_in_flight = 0
        self.num_cached_tokens = 0
        self.block_ids: list[int] = []
        self.block_keys: list[bytes] = []
        self.slot: int | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        # Filled in and kept by the scheduler:
        self.rank: tuple[float, int, int] = (0.0, arrival, index)  # lower runs first
        self.max_len = 0  # prompt plus output tokens where it ends at the latest
        self.max_num_blocks = 0  # blocks it holds by then
        self.kv_variant = ""  # what its keys and values depend on beside its tokens; part of the prefix keys
        self.stop_ids: frozenset[int] = frozenset()  # end-of-sequence and stop ids
        self.bad_words = request.sampling_params.bad_words_token_ids
        self.num_prefill_tokens = 0  # tokens its slot was given; later ones were drawn there
        self.num_keyed_blocks = 0  # leading blocks whose keys were entered in the prefix cache
        self.awaited_key: bytes | None = None  # a running sequence is about to compute the block of this key
        self.last_step = -1  # the last launched step that names it
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.request.request_id, self.index)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling_params

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known by value."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Known tokens plus those in flight."""
        return len(self.token_ids) + self.num_in_flight
