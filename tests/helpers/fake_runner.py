"""A runner without a model: it keeps a KV cache of token histories, so that any wrong reuse shows at once.

The "keys and values" of a token are a hash of it and everything before it. A row reads its whole history through its
block table and fails if one place holds anything else; the next token is a function of that history, the seed and the
position, so `oracle` can say what any request must yield whatever happens around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from pelton.types import Batch, Masks, Request, StepOutput, TokenLogprobs

_MASK = 2**64 - 1
_JUNK = -1  # what a step that failed leaves behind


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_batch_size: int = 4
    max_seq_len: int = 64
    max_input_len: int = 63
    max_num_tokens: int = 32
    tokens_per_block: int = 4
    num_blocks: int = 64
    vocab_size: int = 50


def chain(history: int, token: int) -> int:
    """The hash of a history with one token more."""
    mixed = (history ^ (token + 1)) * 0x9E3779B97F4A7C15 & _MASK
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & _MASK


def draw(history: int, seed: int, vocab_size: int, banned: Iterable[int] = ()) -> int:
    """The token that follows a history."""
    token = (chain(history, seed & 0xFFFF) >> 17) % vocab_size
    banned = set(banned)
    assert len(banned) < vocab_size
    while token in banned:
        token = (token + 1) % vocab_size
    return token


def logprob(history: int) -> float:
    return -(history >> 20) % 1000 / 100.0


def completes_bad_word(tokens: list[int], words: Iterable[tuple[int, ...]]) -> list[int]:
    return [word[-1] for word in words if tokens[len(tokens) - len(word) + 1:] == list(word[:-1])
            and len(word) <= len(tokens) + 1]


@dataclass
class Expected:
    """What one completion must yield when nobody stops it."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    stop_reason: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


def oracle(request: Request, seed: int, end_ids: tuple[int, ...], limits: Limits) -> Expected:
    """One sequence alone, token by token."""
    params = request.sampling_params
    tokens, history, histories = list(request.input_token_ids), 0, []
    for token in tokens:
        history = chain(history, token)
        histories.append(history)
    expected = Expected()
    if params.prompt_logprobs is not None:
        scored = zip(tokens[1:], histories, strict=False)
        expected.prompt_logprobs = [None, *(TokenLogprobs([token], [logprob(h)], 1) for token, h in scored)]
    end_ids = () if params.ignore_eos else end_ids
    longest = min(limits.max_seq_len, limits.num_blocks * limits.tokens_per_block + 1)
    if params.max_tokens is not None:
        longest = min(longest, len(tokens) + params.max_tokens)
    while not expected.finish_reason:
        is_early = len(expected.token_ids) < params.min_tokens
        banned = completes_bad_word(tokens, params.bad_words_token_ids)
        banned += (*end_ids, *params.stop_token_ids) if is_early else ()
        token = draw(history, seed, limits.vocab_size, banned)
        tokens.append(token)
        expected.token_ids.append(token)
        history = chain(history, token)
        if token in end_ids and not is_early:
            expected.finish_reason = "stop"
        elif token in params.stop_token_ids and not is_early:
            expected.finish_reason, expected.stop_reason = "stop", token
        elif len(tokens) >= longest:
            expected.finish_reason = "length"
    return expected


class _Slot:
    def __init__(self, init):
        self.init = init
        self.tokens = list(init.token_ids)
        self.table = list(init.block_ids)
        self.histories: list[int] = []
        self.num_computed: int | None = None
        self.is_broken = False
        self.extend_histories()

    def extend_histories(self) -> None:
        for token in self.tokens[len(self.histories):]:
            self.histories.append(chain(self.histories[-1] if self.histories else 0, token))


class FakeStep:
    """A launched step; `result` makes the device catch up with it."""

    def __init__(self, runner: FakeRunner, batch: Batch):
        self.batch = batch
        self.output: StepOutput | None = None
        self.error: Exception | None = None
        self._runner = runner

    def result(self) -> StepOutput:
        while self.output is None and self.error is None:
            self._runner.run_one()
        if self.error is not None:
            raise self.error
        return self.output


class FakeRunner:
    """Has the interface of `pelton.runner.runner.Runner`, for engine tests too.

    Args:
        is_eager: do each launch at once; else as late as can be, when a result is asked for.
        fail_at: ids of steps whose `result` raises and whose writes are junk.
    """

    def __init__(self, limits: Limits | None = None, *, eos_ids: tuple[int, ...] = (0,), is_eager: bool = False,
                 fail_at: Iterable[int] = ()):
        self.limits = limits or Limits()
        self.num_blocks = self.limits.num_blocks
        self.eos_ids = eos_ids
        self.fail_at = set(fail_at)
        self.is_closed = False
        self.slots: dict[int, _Slot] = {}
        self.batches: list[Batch] = []
        self._is_eager = is_eager
        self._kv: dict[tuple[int, int], int] = {}
        self._queue: deque[Callable[[], None]] = deque()

    def forward(self, batch: Batch) -> FakeStep:
        # Through bytes and back: what the runner knows is what the message says.
        batch = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
        self.batches.append(batch)
        step = FakeStep(self, batch)
        self._launch(lambda: self._forward(step))
        return step

    def sample(self, step: FakeStep, masks: Masks | None) -> None:
        masks = dict(masks or {})
        self._launch(lambda: self._sample(step, masks))

    def close(self) -> None:
        self.is_closed = True

    def run_one(self) -> None:
        """Does the oldest launch that is still queued."""
        self._queue.popleft()()

    def _launch(self, work: Callable[[], None]) -> None:
        self._queue.append(work)
        if self._is_eager:
            self.run_one()

    def _forward(self, step: FakeStep) -> None:
        batch = step.batch
        for slot in batch.freed:
            del self.slots[slot]
        for init in batch.new:
            assert init.slot not in self.slots, f"slot {init.slot} is taken and was not freed"
            self.slots[init.slot] = _Slot(init)
        for slot, block_ids in batch.new_blocks:
            self.slots[slot].table += block_ids
        assert len(set(batch.slots)) == len(batch.slots), "two rows for one slot"
        writes: dict[tuple[int, int], int] = {}
        for row in range(batch.num_rows):
            for place, history in self._run_row(batch, row).items():
                assert place not in writes, f"two rows write place {place}"
                writes[place] = history
        if batch.step_id in self.fail_at:
            writes = dict.fromkeys(writes, _JUNK)
            for slot in batch.slots:
                self.slots[slot].is_broken = True
            step.error = RuntimeError(f"step {batch.step_id} broke")
        self._kv.update(writes)  # after all rows: none may rely on what another row of its step writes

    def _run_row(self, batch: Batch, row: int) -> dict[tuple[int, int], int]:
        slot, start, num_tokens = self.slots[batch.slots[row]], batch.starts[row], batch.num_tokens[row]
        end = start + num_tokens
        places = [divmod(position, self.limits.tokens_per_block) for position in range(end)]
        places = [(slot.table[index], offset) for index, offset in places]
        if slot.is_broken:
            return dict.fromkeys(places[start:], _JUNK)
        if row < batch.num_decodes:
            assert num_tokens == 1
            assert start >= len(slot.init.token_ids), "a decode row runs a token that was handed over"
        else:
            assert end <= len(slot.init.token_ids), "a prefill row runs a token that was drawn"
        assert num_tokens >= 1
        assert start == (start if slot.num_computed is None else slot.num_computed), "tokens skipped or run twice"
        assert batch.is_sampled[row] == (end == len(slot.tokens)), "sampled too early or not at all"
        for position in range(start):
            read = self._kv[places[position]]
            if read == _JUNK:
                slot.is_broken = True
                return dict.fromkeys(places[start:], _JUNK)
            assert read == slot.histories[position], f"slot {batch.slots[row]} reads another history at {position}"
        slot.num_computed = end
        return dict(zip(places[start:], slot.histories[start:end], strict=True))

    def _sample(self, step: FakeStep, masks: Masks) -> None:
        batch = step.batch
        output = StepOutput(batch.step_id, [], [], [], {})
        for row, number in enumerate(batch.slots):
            slot = self.slots[number]
            params = slot.init.sampling
            if row >= batch.num_decodes and params.prompt_logprobs is not None:
                output.prompt_logprobs[number] = self._score_prompt(slot, batch.starts[row], batch.num_tokens[row])
            if not batch.is_sampled[row]:
                continue
            num_output = len(slot.tokens) - slot.init.num_prompt_tokens
            banned = list(masks.get(number, ())) + list(slot.init.end_ids if num_output < params.min_tokens else ())
            history = slot.histories[-1]
            token = draw(history + slot.is_broken, slot.init.seed, self.limits.vocab_size, banned)
            slot.tokens.append(token)
            slot.extend_histories()
            output.slots.append(number)
            output.token_ids.append(token)
            entry = None if params.logprobs is None else TokenLogprobs([token], [logprob(history)], 1)
            output.logprobs.append(entry)
        if step.error is None:
            step.output = output

    def _score_prompt(self, slot: _Slot, start: int, num_tokens: int) -> list[TokenLogprobs]:
        last = min(start + num_tokens, slot.init.num_prompt_tokens - 1)
        return [TokenLogprobs([slot.tokens[i + 1]], [logprob(slot.histories[i])], 1) for i in range(start, last)]
