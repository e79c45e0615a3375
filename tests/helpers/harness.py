"""Scheduler and fake runner in the step loop of the design, with every check there is after every move."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field

from helpers.fake_runner import Expected, FakeRunner, Limits, oracle
from pelton.config import ExecutorConfig, KvCacheConfig
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Batch, Output, Request, SamplingParams, Sequence

EOS = (0,)


def make_config(policy="max_utilization", *, chunked=True, in_flight=True, reuse=True, **more) -> ExecutorConfig:
    return ExecutorConfig(scheduling_policy=policy, enable_chunked_prefill=chunked, in_flight_batching=in_flight,
                          kv_cache_config=KvCacheConfig(enable_block_reuse=reuse), **more)


def make_request(prompt, *, request_id="", priority=0, arrival_time=1.0, salt="", **params) -> Request:
    return Request(list(prompt), sampling_params=SamplingParams(**params), request_id=request_id, priority=priority,
                   arrival_time=arrival_time, cache_salt=salt)


@dataclass
class Completion:
    """What one completion has yielded so far, beside what it must."""

    request: Request
    expected: Expected
    token_ids: list[int] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    finish_reason: str | None = None


class Harness:
    """Drives the loop; `depth` 0 is the synchronous mode, 1 overlap, 2 a pipeline of two stages."""

    def __init__(self, config: ExecutorConfig | None = None, *, depth: int = 1, is_eager: bool = False,
                 fail_at: tuple[int, ...] = (), is_checked: bool = True, kv_variant=None, **limits):
        self.limits = Limits(**limits)
        self.depth = depth
        self.scheduler = Scheduler(self.limits, config or ExecutorConfig(), depth=max(depth, 1),
                                   kv_variant=kv_variant)
        self.runner = FakeRunner(self.limits, eos_ids=EOS, is_eager=is_eager, fail_at=fail_at)
        self.completions: dict[tuple[str, int], Completion] = {}
        self.num_emitted = 0
        self.num_late = 0
        self._arrivals = itertools.count()
        self._ids = itertools.count()
        self._in_flight: deque[tuple[Batch, object]] = deque()
        self._tables: dict[int, list[int]] = {}  # by slot, from the batches alone
        self._named: dict[int, set[int]] = {}  # step in flight -> blocks its rows name
        self._is_checked = is_checked

    def add(self, prompt, *, seed=7, **options) -> str:
        options.setdefault("request_id", f"q{next(self._ids)}")
        request = make_request(prompt, **options)
        self.scheduler.validate(request)
        for index in range(request.sampling_params.n):
            seq = Sequence(request, index=index, arrival=next(self._arrivals), seed=seed + index, end_ids=EOS)
            self.scheduler.add(seq)
            expected = oracle(request, seed + index, EOS, self.limits)
            self.completions[seq.key] = Completion(request, expected)
        self.check()
        return request.request_id

    def cancel(self, request_id: str) -> None:
        live = {key for key, done in self.completions.items() if key[0] == request_id and done.finish_reason is None}
        cancelled = self.scheduler.cancel(request_id)
        assert {seq.key for seq in cancelled} == live
        for key in live:
            self.completions[key].finish_reason = "cancelled"
        self.check()

    def finish(self, key: tuple[str, int], num_tokens: int) -> None:
        """A stop string was found after `num_tokens` tokens that were emitted."""
        done = self.completions[key]
        if done.finish_reason is None:
            self.num_late += len(done.token_ids) - num_tokens
            del done.token_ids[num_tokens:]
            done.finish_reason = "stop"
        self.scheduler.finish(*key, num_tokens)
        self.check()

    def step(self, interrupt=lambda: None) -> Batch | None:
        """One turn of the loop; `interrupt` is called wherever a cancel or an arrival could come between."""
        batch = self.scheduler.schedule()
        self.check()
        if batch is None:
            assert self._in_flight or not self.scheduler.has_work(), "there is work but nothing runs"
            self.drain()
            return None
        self._check_batch(batch)
        step = self.runner.forward(batch)
        interrupt()
        self._collect(keep=max(self.depth - 1, 0))
        interrupt()
        self.runner.sample(step, self.scheduler.masks(batch))
        self._in_flight.append((batch, step))
        self._collect(keep=self.depth)
        return batch

    def drain(self) -> None:
        self._collect(keep=0)

    def run(self, max_steps: int = 10_000) -> None:
        """Until all that was added has ended and given everything back."""
        for _ in range(max_steps):
            if not self.scheduler.has_work():
                break
            self.step()
        assert not self.scheduler.has_work(), f"not done after {max_steps} steps"
        self.drain()
        self.check_ended()

    def check(self) -> None:
        if self._is_checked:
            self.scheduler.check_integrity()
            pool = self.scheduler.pool
            for blocks in self._named.values():
                assert pool.num_unreferenced(blocks) == 0, "a block returned while a launched step names it"

    def check_ended(self) -> None:
        """Everything has come back, and each completion yielded exactly what it had to."""
        scheduler = self.scheduler
        assert scheduler.pool.num_used == 0
        assert scheduler.num_running == scheduler.num_waiting == 0
        assert not scheduler._tables.announced
        late = self.num_late - scheduler._num_overcounted
        assert scheduler.num_generated_tokens == self.num_emitted - late
        for done in self.completions.values():
            assert done.finish_reason is not None
            assert done.token_ids == done.expected.token_ids[:len(done.token_ids)]

    def _collect(self, *, keep: int) -> None:
        while len(self._in_flight) > keep:
            batch, step = self._in_flight.popleft()
            del self._named[batch.step_id]
            try:
                output = step.result()
            except RuntimeError as error:
                outputs = self.scheduler.fail(batch.step_id, str(error))
            else:
                outputs = self.scheduler.update(output)
            for news in outputs:
                self._take(news)
            self.check()

    def _take(self, news: Output) -> None:
        done = self.completions[news.request_id, news.index]
        assert done.finish_reason is None, "news of a completion that has ended"
        done.outputs.append(news)
        done.token_ids += news.token_ids
        done.finish_reason = news.finish_reason
        self.num_emitted += len(news.token_ids)
        if news.finish_reason == "error":
            return
        expected, num = done.expected, len(done.token_ids)
        assert done.token_ids == expected.token_ids[:num], "a wrong, lost or repeated token"
        assert (news.finish_reason is not None) == (num == len(expected.token_ids))
        if news.finish_reason is not None:
            assert (news.finish_reason, news.stop_reason) == (expected.finish_reason, expected.stop_reason)
        is_first = len(done.outputs) == 1
        assert news.prompt_logprobs == (expected.prompt_logprobs if is_first else None)
        assert (news.logprobs is not None) == (done.request.sampling_params.logprobs is not None)

    def _check_batch(self, batch: Batch) -> None:
        assert 0 < batch.total_tokens <= self.limits.max_num_tokens
        assert batch.num_rows <= self.limits.max_batch_size
        assert all(num == 1 for num in batch.num_tokens[:batch.num_decodes])
        assert {init.slot for init in batch.new} <= set(batch.slots[batch.num_decodes:])
        assert {slot for slot, _ in batch.new_blocks} <= set(batch.slots[:batch.num_decodes])
        for slot in batch.freed:
            del self._tables[slot]
        for init in batch.new:
            assert len(init.block_ids) * self.limits.tokens_per_block >= len(init.token_ids)
            self._tables[init.slot] = list(init.block_ids)
            if not self.scheduler.config.enable_chunked_prefill:
                row = batch.slots.index(init.slot)
                is_longer = batch.starts[row] + batch.num_tokens[row] < len(init.token_ids)
                assert not is_longer or len(init.token_ids) > self.limits.max_num_tokens, "a prompt was split"
        for slot, block_ids in batch.new_blocks:
            self._tables[slot] += block_ids
        self._named[batch.step_id] = {block for slot in batch.slots for block in self._tables[slot]}


class Traffic:
    """Random arrivals, cancels and stop strings for a harness, all from one seed."""

    def __init__(self, harness: Harness, seed: int, *, longest: int = 40):
        self.harness = harness
        self.rng = random.Random(seed)
        self.num_events = {"arrive": 0, "cancel": 0, "finish": 0}
        limits = harness.limits
        self._longest = min(longest, limits.max_input_len, limits.num_blocks * limits.tokens_per_block)
        if not harness.scheduler.config.enable_chunked_prefill:
            self._longest = min(self._longest, limits.max_num_tokens)
        self._prefixes = [[self.rng.randrange(limits.vocab_size) for _ in range(self._longest)] for _ in range(3)]

    def arrive(self) -> None:
        rng, vocab = self.rng, self.harness.limits.vocab_size
        prompt = rng.choice(self._prefixes)[:rng.randint(0, self._longest - 1)]
        prompt = prompt + [rng.randrange(vocab) for _ in range(rng.randint(1, 6))]
        params: dict = {"max_tokens": rng.choice((1, 2, 5, 12, 30, None)), "n": rng.choice((1, 1, 1, 1, 2, 3))}
        if rng.random() < 0.1:
            params["stop_token_ids"] = (rng.randrange(vocab),)
        if rng.random() < 0.1:
            params["min_tokens"] = rng.randint(0, params["max_tokens"] or 8)
        if rng.random() < 0.1:
            words = [tuple(rng.randrange(vocab) for _ in range(rng.randint(1, 2))) for _ in range(12)]
            params["bad_words_token_ids"] = tuple(words)
        params["ignore_eos"] = rng.random() < 0.1
        params["prompt_logprobs"] = 0 if rng.random() < 0.08 else None
        params["logprobs"] = 0 if rng.random() < 0.1 else None
        self.harness.add(prompt[:self._longest], seed=rng.randrange(1000), priority=rng.choice((0, 0, 0, 1, -1)),
                         arrival_time=1.0 + self.num_events["arrive"], salt=rng.choice(("", "", "a")), **params)
        self.num_events["arrive"] += params["n"]

    def cancel(self) -> None:
        live = [key[0] for key, done in self.harness.completions.items() if done.finish_reason is None]
        self.harness.cancel(self.rng.choice(live) if live else "nobody")
        self.num_events["cancel"] += bool(live)

    def finish(self) -> None:
        live = [key for key, done in self.harness.completions.items() if done.finish_reason is None and done.token_ids]
        if live:
            key = self.rng.choice(live)
            num_tokens = len(self.harness.completions[key].token_ids)
            self.harness.finish(key, self.rng.randint(max(num_tokens - 3, 1), num_tokens))
            self.num_events["finish"] += 1

    def interrupt(self) -> None:
        """Now and then, something happens while steps are in flight."""
        roll = self.rng.random()
        if roll < 0.02:
            self.cancel()
        elif roll < 0.05:
            self.finish()
        elif roll < 0.08:
            self.arrive()

    def forget_ended(self) -> None:
        """Drops ended completions, whose tokens were checked as they came."""
        ended = [key for key, done in self.harness.completions.items() if done.finish_reason is not None]
        for key in ended:
            del self.harness.completions[key]
