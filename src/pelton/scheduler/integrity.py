"""Whether the scheduler's books agree with each other and with the cache's. Reads private state; for tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pelton.types import Sequence

if TYPE_CHECKING:
    from pelton.scheduler.scheduler import Scheduler


def check_integrity(scheduler: Scheduler) -> None:
    """Raises AssertionError with what is wrong. Costs time in proportion to all blocks and sequences."""
    _check_lists(scheduler)
    _check_counts(scheduler)
    _check_slots(scheduler)
    _check_blocks(scheduler)


def _check_lists(scheduler: Scheduler) -> None:
    waiting, prefilling, decoding = scheduler._waiting, scheduler._prefilling, scheduler._decoding
    for seqs in (waiting, prefilling, decoding):
        ranks = [seq.rank for seq in seqs]
        assert ranks == sorted(ranks), "a list is not in rank order"
    listed = [seq.key for seq in (*waiting, *prefilling, *decoding)]
    live = [seq.key for seqs in scheduler._live.values() for seq in seqs]
    assert len(listed) == len(set(listed)), "a sequence stands in two lists"
    assert sorted(listed) == sorted(live), "a live sequence is in no list, or an ended one is"


def _check_counts(scheduler: Scheduler) -> None:
    drawn = Counter(seq.key for step in scheduler._in_flight.values() for seq in step.sampled)
    for seq in (*scheduler._waiting, *scheduler._prefilling, *scheduler._decoding):
        assert seq.finish_reason is None, f"{seq.key} has ended but is listed"
        assert seq.num_in_flight == drawn[seq.key], f"{seq.key}: wrong number of tokens in flight"
        assert seq.num_tokens <= seq.max_len, f"{seq.key} is longer than it may become"
    for seq in scheduler._waiting:
        held = (seq.block_ids, seq.num_scheduled, seq.slot, seq.num_in_flight)
        assert held == ([], 0, None, 0), f"{seq.key} waits but holds something: {held}"
    for seq in scheduler._prefilling:
        assert seq.num_scheduled < seq.num_prefill_tokens == seq.num_tokens, f"{seq.key} is not prefilling"
    for seq in scheduler._decoding:
        assert seq.num_scheduled == seq.num_tokens - 1 >= seq.num_prefill_tokens, f"{seq.key} is not decoding"


def _check_slots(scheduler: Scheduler) -> None:
    taken = [seq.slot for seq in (*scheduler._prefilling, *scheduler._decoding) if seq.slot is not None]
    slots = taken + scheduler._free_slots
    assert sorted(slots) == list(range(scheduler.limits.max_batch_size)), "a slot is lost or taken twice"
    assert scheduler.num_running <= scheduler.limits.max_batch_size, "more sequences run than there are slots"


def _check_blocks(scheduler: Scheduler) -> None:
    pool, tables = scheduler.pool, scheduler._tables
    running = (*scheduler._prefilling, *scheduler._decoding)
    deferred = [table for step in scheduler._in_flight.values() for table in step.releases]
    pool.check_integrity([*deferred, *(seq.block_ids for seq in running)])
    for seq in running:
        num_places = len(seq.block_ids) * pool.tokens_per_block
        assert seq.num_scheduled <= num_places, f"{seq.key} has more tokens than places in its blocks"
        assert len(seq.block_ids) <= seq.max_num_blocks, f"{seq.key} holds more blocks than it can need"
        _check_keys(scheduler, seq)
    num_promised = sum(seq.max_num_blocks - len(seq.block_ids) for seq in running)
    assert tables.num_promised == num_promised, "promised blocks are miscounted"
    assert scheduler._policy.can_preempt or num_promised <= pool.num_free, "promised blocks were given away"
    for key, owner in tables.announced.items():
        assert owner in scheduler._prefilling, f"{owner.key} announces a block but does not prefill"
        assert key in owner.block_keys[owner.num_keyed_blocks:], f"{owner.key} announces a block it will not compute"


def _check_keys(scheduler: Scheduler, seq: Sequence) -> None:
    assert seq.num_keyed_blocks <= len(seq.block_keys) or not scheduler.pool.enable_reuse, f"{seq.key} lacks keys"
    for block, key in zip(seq.block_ids, seq.block_keys[:seq.num_keyed_blocks]):
        held = scheduler.pool._key_of[block]
        assert held in (None, key), f"{seq.key}: block {block} is found under another key"
    for block in seq.block_ids[seq.num_keyed_blocks:]:
        assert scheduler.pool._key_of[block] is None, f"{seq.key}: block {block} is findable too early"
