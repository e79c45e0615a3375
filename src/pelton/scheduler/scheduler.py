"""Who runs in the next step, with which blocks and how many tokens; and what the last step's tokens mean.

Plain Python; the scheduler knows no tensors, no text and no clock. It plans ahead of knowledge: `schedule` may be
called while earlier steps are in flight, and then counts the tokens they will draw without knowing them. What depends
on counts (lengths, blocks) is exact at once; an end that depends on a token's value (end-of-sequence, stop ids) is
found in `update`, and the token that a step launched meanwhile draws for the same sequence is dropped.

A sequence is in one of three lists, each in rank order (ranking.py):

    waiting -> prefilling -> decoding -> ended
       ^___________|____________|   preempted: blocks given up, tokens kept and computed again
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from pelton.cache.blocks import BlockPool
from pelton.config import ExecutorConfig
from pelton.errors import CapacityError, RequestError
from pelton.manifest import EngineLimits
from pelton.scheduler import ranking
from pelton.scheduler.integrity import check_integrity
from pelton.scheduler.masks import banned_tokens
from pelton.scheduler.policies import POLICIES
from pelton.scheduler.step import PlannedStep
from pelton.scheduler.tables import Admission, BlockTables
from pelton.scheduler.validate import check_request, max_total_tokens
from pelton.types import Batch, FinishReason, Masks, Output, Request, Sequence, SlotInit, StepOutput, TokenLogprobs

PASSED_OVER = 2
"""Waiting sequences looked at per step for one that need not wait for a prefix, as a multiple of max_batch_size."""


class Scheduler:
    """In-flight batching over a paged KV cache.

    Each step runs the decoding sequences first, one token each, and fills up with prompts, in chunks if need be. With
    static batching (`in_flight_batching` off) nothing is admitted before the last member of a batch has ended, and its
    members' full lengths are reserved, so that none is preempted.

    Args:
        limits: the running engine's; final, so `config`'s own max_batch_size and max_num_tokens are not looked at.
        config: policy, batching, chunking, queue length and block reuse are taken from it.
        depth: how many steps the loop leaves in flight while the next is planned (0 counts as 1). Beyond 1, a row whose
            mask is made on the host sits out until its last token is known.
        kv_variant: (prompt tokens, most tokens in all) -> what a sequence's keys and values depend on beside its
            tokens, for models whose rotation goes by length; sequences of different variants share no blocks.
    """

    def __init__(self, limits: EngineLimits, config: ExecutorConfig | None = None, *, depth: int = 1,
                 kv_variant: Callable[[int, int], str] | None = None):
        config = config or ExecutorConfig()
        self.limits = limits
        self.config = config
        self.pool = BlockPool(limits.num_blocks, limits.tokens_per_block,
                              enable_reuse=config.kv_cache_config.enable_block_reuse)
        is_static = not config.in_flight_batching
        self._policy = POLICIES["guaranteed_no_evict" if is_static else config.scheduling_policy]
        self._tables = BlockTables(self.pool, self._policy, awaits_prefixes=not is_static)
        self._depth = depth
        self._kv_variant = kv_variant
        self._waiting: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._live: dict[str, list[Sequence]] = {}
        self._in_flight: dict[int, PlannedStep] = {}  # oldest first
        self._next_step_id = 0
        self._free_slots = list(range(limits.max_batch_size))  # a heap: low slots first
        self._freed: list[int] = []  # slots the runner has not yet heard are free
        self._num_overcounted = 0
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    # Requests come and go.

    def validate(self, request: Request) -> None:
        """Refuses what cannot be queued; reads only, so other threads may ask.

        Raises:
            RequestError: it can never run here, or its id is in use.
            CapacityError: the queue is full.
        """
        check_request(request, self.limits, is_chunked=self.config.enable_chunked_prefill)
        if request.request_id in self._live:
            raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
        if self.num_waiting + request.sampling_params.n > self.config.max_queue_size:
            raise CapacityError(f"the queue is full: {self.num_waiting} sequences wait, max_queue_size is "
                                f"{self.config.max_queue_size}; try again later")

    def add(self, seq: Sequence) -> None:
        """Queues one completion of a request that `validate` let pass."""
        params = seq.sampling
        max_tokens = self.limits.max_seq_len if params.max_tokens is None else params.max_tokens
        seq.max_len = min(seq.num_prompt_tokens + max_tokens, max_total_tokens(self.limits))
        seq.max_num_blocks = -(-(seq.max_len - 1) // self.pool.tokens_per_block)
        if self._kv_variant is not None:
            most = min(seq.num_prompt_tokens + max_tokens, self.limits.max_seq_len)  # as the runner counts it
            seq.kv_variant = self._kv_variant(seq.num_prompt_tokens, most)
        seq.stop_ids = frozenset(() if params.ignore_eos else seq.end_ids) | frozenset(params.stop_token_ids)
        seq.rank = ranking.rank(seq.request, seq.arrival, seq.index)
        if params.prompt_logprobs is not None:
            seq.prompt_logprobs = [None] * seq.num_prompt_tokens
        self._live.setdefault(seq.request.request_id, []).append(seq)
        ranking.insert(self._waiting, seq)

    def cancel(self, request_id: str) -> list[Sequence]:
        """Ends all completions of a request, whatever they are doing; returns those that had not ended."""
        cancelled = list(self._live.get(request_id, ()))
        for seq in cancelled:
            self._end(seq, "cancelled")
        return cancelled

    def finish(self, request_id: str, index: int, num_tokens: int) -> None:
        """Ends a completion whose text matched a stop string after `num_tokens` output tokens.

        There is no Output for it: the text side, which calls this, knows the end already. Later tokens do not count.
        A completion that has ended meanwhile is left alone.
        """
        for seq in self._live.get(request_id, ()):
            if seq.index == index:
                num_late = max(seq.num_output_tokens - num_tokens, 0)
                self._num_overcounted += num_late
                del seq.token_ids[len(seq.token_ids) - num_late:]
                self._end(seq, "stop")
                return

    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._live)

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def stats(self) -> dict[str, int]:
        """Counts as `engine.messages.Stats` names them."""
        return {
            "num_running": self.num_running, "num_waiting": self.num_waiting,
            "num_blocks_used": self.pool.num_used, "num_blocks_free": self.pool.num_free,
            "num_blocks_cached": self.pool.num_cached, "num_preemptions": self.num_preemptions,
            "num_prompt_tokens": self.num_prompt_tokens, "num_cached_tokens": self.num_cached_tokens,
            "num_generated_tokens": self.num_generated_tokens,
        }

    # A step is planned.

    def schedule(self) -> Batch | None:
        """Plans the next step; it counts as launched from here on.

        None when nothing can run now: either there is no work, or what there is waits for a step in flight.
        """
        step = PlannedStep(self._next_step_id)
        self._plan_decodes(step, self.limits.max_num_tokens - self._num_tokens_owed())
        budget = self._prompt_budget(len(step.seqs))
        self._admit(budget)
        self._plan_prefills(step, budget)
        if not step.seqs:
            return None
        for seq, num_tokens in zip(step.seqs, step.num_tokens):
            # Last, so that no row of this step finds a block that this step computes.
            if num_tokens > 1 or seq.num_scheduled % self.pool.tokens_per_block == 0:
                self._tables.enter_full_blocks(seq)
        self._next_step_id += 1
        self._in_flight[step.step_id] = step
        freed, self._freed = self._freed, []
        return step.to_batch(freed)

    def _prompt_budget(self, num_decodes: int) -> int:
        """Prompt tokens that a step with so many decodes may run: a chunk, or all it has room for if a prompt is alone.

        A step's tokens come when it ends. With many prompts at once, small steps answer the first of them early, and
        their completions then do not end all at once, so that what follows them does not come all at once either.
        """
        room = self.limits.max_num_tokens - num_decodes
        chunk = self.config.chunked_prefill_size
        is_alone = not num_decodes and len(self._waiting) + len(self._prefilling) == 1
        if chunk is None or is_alone or not self.config.enable_chunked_prefill:
            return room
        return min(room, chunk)

    def _num_tokens_owed(self) -> int:
        """Tokens kept from the decodes for a prompt that must run whole and might else wait for ever for the room."""
        if self.config.enable_chunked_prefill or not self._prefilling:
            return 0
        seq = self._prefilling[0]
        return min(seq.num_prefill_tokens - seq.num_scheduled, self.limits.max_num_tokens)

    def _plan_decodes(self, step: PlannedStep, budget: int) -> None:
        tokens_per_block = self.pool.tokens_per_block
        place = 0
        while place < len(self._decoding) and len(step.seqs) < budget:
            seq = self._decoding[place]
            place += 1
            if len(seq.token_ids) + seq.num_in_flight >= seq.max_len or seq is step.held:
                continue
            if seq.bad_words and seq.num_in_flight and self._depth > 1:
                continue
            index = seq.num_scheduled // tokens_per_block
            if index == len(seq.block_ids) and not self._grow(step, seq):
                continue
            step.add_row(seq, 1, is_sampled=True, block_ids=seq.block_ids[index:index + 1])
        step.num_decodes = len(step.seqs)

    def _grow(self, step: PlannedStep, seq: Sequence) -> bool:
        """Appends a block to a decoding sequence, if need be at the cost of the last in rank.

        Only a sequence whose tokens are all known can be preempted: else it sits out, to be preempted once they are.
        """
        while not self.pool.num_free:
            assert self._policy.can_preempt, "a block that was promised is missing"
            if any(other.releases for other in self._in_flight.values()):
                return False  # blocks are on their way back
            victim = max((seqs[-1] for seqs in (self._prefilling, self._decoding) if seqs), key=lambda s: s.rank)
            if victim.num_in_flight:
                step.held = victim
                return False
            self._preempt(victim)
            if victim is seq:
                return False
        step.new_blocks.append((seq.slot, [self._tables.grow(seq)]))
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._stop_running(seq)
        ranking.insert(self._waiting, seq)
        self.num_preemptions += 1

    def _admit(self, budget: int) -> None:
        """Moves waiting sequences to the running ones while slots, blocks and the step's tokens last.

        The first that finds no room keeps those behind it waiting too, so that it cannot be passed over for ever.
        """
        is_static = not self.config.in_flight_batching
        if not self._waiting or (is_static and self.num_running):
            return
        place = num_ahead = 0
        last = PASSED_OVER * self.limits.max_batch_size
        while place < min(len(self._waiting), last) and self.num_running < self.limits.max_batch_size:
            seq = self._waiting[place]
            for other in self._prefilling[num_ahead:]:
                if other.rank > seq.rank:
                    break
                budget -= other.num_prefill_tokens - other.num_scheduled
                num_ahead += 1
            if budget <= 0 and not is_static:
                break
            admission = self._tables.admit(seq, self.num_running)
            if admission is Admission.NO_ROOM:
                break
            if admission is Admission.PREFIX_COMING:
                place += 1
                continue
            del self._waiting[place]
            ranking.insert(self._prefilling, seq)

    def _plan_prefills(self, step: PlannedStep, budget: int) -> None:
        tokens_per_block = self.pool.tokens_per_block
        done = []
        for seq in self._prefilling:
            num_left = seq.num_prefill_tokens - seq.num_scheduled
            if not self.config.enable_chunked_prefill and budget < num_left <= self.limits.max_num_tokens:
                break  # runs whole; only what a preempted sequence has grown to may be longer than a step
            num_tokens = min(num_left, budget)
            if not num_tokens:
                break
            if seq.slot is None:
                self._take_slot(step, seq)
            budget -= num_tokens
            first, end = seq.num_scheduled // tokens_per_block, seq.num_scheduled + num_tokens
            step.add_row(seq, num_tokens, is_sampled=num_tokens == num_left,
                         block_ids=seq.block_ids[first:-(-end // tokens_per_block)])
            if num_tokens == num_left:
                done.append(seq)
        for seq in done:
            ranking.remove(self._prefilling, seq)
            ranking.insert(self._decoding, seq)

    def _take_slot(self, step: PlannedStep, seq: Sequence) -> None:
        seq.slot = heapq.heappop(self._free_slots)
        if seq.last_step < 0:
            seq.num_cached_tokens = seq.num_scheduled
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_scheduled
        banned_early = seq.sampling.stop_token_ids if seq.sampling.ignore_eos else (
            *seq.end_ids, *seq.sampling.stop_token_ids)
        step.new.append(SlotInit(
            slot=seq.slot, token_ids=list(seq.token_ids), num_prompt_tokens=seq.num_prompt_tokens,
            block_ids=list(seq.block_ids), sampling=seq.sampling, seed=seq.seed, end_ids=banned_early))

    def masks(self, batch: Batch) -> Masks | None:
        """Token ids that rows of a launched step must not draw; their earlier tokens must be known by now."""
        masks = {}
        for seq in self._in_flight[batch.step_id].masked:
            if seq.finish_reason is None:
                assert seq.num_in_flight == 1, f"{seq.key}: its last token is not known"
                masks[seq.slot] = banned_tokens(seq.token_ids, seq.bad_words)
        return masks or None

    # A step has completed.

    def update(self, output: StepOutput) -> list[Output]:
        """Takes in the tokens of the oldest step in flight; returns what is new, one Output per sequence."""
        step = self._complete(output.step_id)
        if output.prompt_logprobs:
            self._take_prompt_logprobs(step, output.prompt_logprobs)
        tokens_per_block = self.pool.tokens_per_block
        logprobs = output.logprobs or [None] * len(step.sampled)
        outputs = []
        for seq, token, token_logprobs in zip(step.sampled, output.token_ids, logprobs, strict=True):
            if seq.finish_reason is not None:
                continue  # it ended after this step was launched
            seq.num_in_flight -= 1
            seq.token_ids.append(token)
            if len(seq.token_ids) % tokens_per_block == 0:
                self._tables.enter_full_blocks(seq)
            news = Output(seq.request.request_id, seq.index, [token], num_cached_tokens=seq.num_cached_tokens)
            if token_logprobs is not None:
                news.logprobs = [token_logprobs]
            if seq.prompt_logprobs is not None and seq.num_output_tokens == 1:
                news.prompt_logprobs = seq.prompt_logprobs
            if token in seq.stop_ids and seq.num_output_tokens > seq.sampling.min_tokens:
                is_eos = token in seq.end_ids and not seq.sampling.ignore_eos
                self._end(seq, "stop", None if is_eos else token)
            elif len(seq.token_ids) >= seq.max_len:
                self._end(seq, "length")
            news.finish_reason, news.stop_reason = seq.finish_reason, seq.stop_reason
            outputs.append(news)
        self._count_generated(len(outputs))
        return outputs

    def fail(self, step_id: int, message: str) -> list[Output]:
        """Takes note that the oldest step in flight did not do its work, in place of `update`.

        Its sequences end with an error. So do those that hold a block written by one of them in this or a later
        launched step, and so on: they share a prefix that does not exist. What any of these steps wrote cannot be
        found any more. All other sequences go on.
        """
        launched = list(self._in_flight.values())
        step = self._complete(step_id)
        writers = {block: seq for other in launched for seq, block_ids in zip(other.seqs, other.block_ids)
                   for block in block_ids}
        self.pool.forget(writers)
        broken = {seq.key: seq for seq in step.seqs}

        def shares_with_broken(seq: Sequence) -> bool:
            others = (writers[block] for block in seq.block_ids if writers.get(block, seq) is not seq)
            return any(other.key in broken or not other.block_ids for other in others)

        num_known = 0
        while len(broken) > num_known:
            num_known = len(broken)
            running = (*self._prefilling, *self._decoding)
            broken |= {seq.key: seq for seq in running if seq.key not in broken and shares_with_broken(seq)}
        outputs = []
        for seq in broken.values():
            if seq.finish_reason is None:
                self._end(seq, "error")
                outputs.append(Output(*seq.key, [], finish_reason="error", error=message))
        return outputs

    def _complete(self, step_id: int) -> PlannedStep:
        assert step_id == next(iter(self._in_flight), None), f"step {step_id} is not the oldest in flight"
        step = self._in_flight.pop(step_id)
        for table in step.releases:
            self.pool.release(table)
        return step

    def _take_prompt_logprobs(self, step: PlannedStep, by_slot: dict[int, list[TokenLogprobs]]) -> None:
        for seq, slot, start in zip(step.seqs, step.slots, step.starts):
            if seq.prompt_logprobs is not None:
                num_left = seq.num_prompt_tokens - 1 - start
                entries = by_slot.get(slot, [])[:max(num_left, 0)]
                seq.prompt_logprobs[start + 1:start + 1 + len(entries)] = entries

    def _count_generated(self, num_tokens: int) -> None:
        # Tokens after a stop string were counted before it was found. The counter never falls, so they are set off
        # against the tokens that follow.
        num_set_off = min(num_tokens, self._num_overcounted)
        self._num_overcounted -= num_set_off
        self.num_generated_tokens += num_tokens - num_set_off

    def check_integrity(self) -> None:
        """Raises AssertionError if the books of scheduler and cache disagree; for tests, after every step."""
        check_integrity(self)

    # A sequence leaves.

    def _end(self, seq: Sequence, reason: FinishReason, stop_reason: int | None = None) -> None:
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        if seq.block_ids:
            self._stop_running(seq)
        else:
            ranking.remove(self._waiting, seq)
        live = self._live[seq.request.request_id]
        live.remove(seq)
        if not live:
            del self._live[seq.request.request_id]

    def _stop_running(self, seq: Sequence) -> None:
        """Takes slot and blocks from a sequence. Blocks that a launched step names return when it has completed."""
        ranking.remove(self._prefilling if seq.num_scheduled < seq.num_prefill_tokens else self._decoding, seq)
        table = self._tables.withdraw(seq)
        last = self._in_flight.get(seq.last_step)
        if last is None:
            self.pool.release(table)
        else:
            last.releases.append(table)
        if seq.slot is not None:
            heapq.heappush(self._free_slots, seq.slot)
            self._freed.append(seq.slot)
            seq.slot = None
