"""Counts, columns and bans as a slot's sequence goes on."""

import numpy as np
import torch

from pelton.runner.slots import Slots
from pelton.types import Batch, SamplingParams, SlotInit


def make_slots():
    return Slots(num_slots=4, max_seq_len=64, tokens_per_block=16, vocab_size=20, device=torch.device("cpu"))


def change(*, new=(), new_blocks=(), freed=()):
    return Batch(0, [], [], [], [], 0, list(new), list(new_blocks), list(freed))


def take(slots, batch):
    slots.apply(batch)
    slots.push(batch)


def init(slot, token_ids, num_prompt, params, *, end_ids=(), seed=0):
    return SlotInit(slot, token_ids, num_prompt, [slot], params, seed, end_ids)


def columns_of(slots, rows, masks=None):
    positions = slots.num_known_tokens[rows]
    return slots.columns(np.array(rows), positions, masks)


def test_counts_are_allocated_when_first_needed():
    slots = make_slots()
    take(slots, change(new=[init(0, [1, 2], 2, SamplingParams(logit_bias={1: 2.0}))]))
    assert slots.counts is None
    take(slots, change(new=[init(1, [1, 2, 2, 5, 5, 5, 2], 3, SamplingParams(presence_penalty=1.0))]))
    assert slots.counts[1].tolist() == [0, 1, 3, 0, 0, 6, *[0] * 14]


def test_drawn_tokens_are_counted_where_asked():
    slots = make_slots()
    counted = SamplingParams(frequency_penalty=1.0)
    take(slots, change(new=[init(0, [1], 1, counted), init(1, [1], 1, SamplingParams()), init(3, [4], 1, counted)]))
    slots.record(np.array([3, 1, 0]), torch.tensor([4, 9, 7]))
    slots.record(np.array([3, 1, 0]), torch.tensor([4, 9, 1]))
    assert slots.last_tokens[[0, 1, 3]].tolist() == [1, 9, 4]
    assert slots.counts[3].nonzero().tolist() == [[4]]
    assert slots.counts[3, 4] == 1 + 2 * 2
    assert slots.counts[0, [1, 7]].tolist() == [3, 2]
    assert not slots.counts[1].any()


def test_slot_taken_again_starts_from_zero():
    slots = make_slots()
    take(slots, change(new=[init(2, [1, 2, 3], 1, SamplingParams(repetition_penalty=2.0))]))
    take(slots, change(freed=[2], new=[init(2, [5], 1, SamplingParams(repetition_penalty=2.0))]))
    assert slots.counts[2].nonzero().tolist() == [[5]]
    assert slots.num_blocks[2] == 1


def test_columns_carry_every_parameter():
    slots = make_slots()
    params = SamplingParams(temperature=0.3, top_k=4, top_p=0.9, min_p=0.1, presence_penalty=0.5,
                            frequency_penalty=0.25, repetition_penalty=1.5, min_tokens=2, logit_bias={3: -1.0})
    take(slots, change(new=[init(0, [1], 1, SamplingParams()),
                            init(1, [1, 2], 1, params, end_ids=(9, 8), seed=-3)]))
    columns = columns_of(slots, [1, 0], {1: [7], 0: [6]})
    names = ("temperature", "top_k", "top_p", "min_p", "presence", "frequency", "repetition", "seed", "position")
    assert [float(np.float32(getattr(columns, name)[0])) for name in names] == [
        float(np.float32(value)) for value in (0.3, 4, 0.9, 0.1, 0.5, 0.25, 1.5, -3, 2)]
    assert [(row, ids.tolist(), values.tolist()) for row, ids, values in columns.bias] == [(0, [3], [-1.0])]
    assert [(row, ids.tolist()) for row, ids in columns.banned] == [(0, [9, 8]), (0, [7]), (1, [6])]
    assert list(columns.counts) == [0]


def test_end_ids_are_banned_below_min_tokens_only():
    slots = make_slots()
    take(slots, change(new=[init(0, [1, 2, 3], 1, SamplingParams(min_tokens=3), end_ids=(9,))]))
    for position, is_banned in ((3, True), (4, False)):
        columns = slots.columns(np.array([0]), np.array([position]), None)
        assert bool(columns.banned) == is_banned


def test_plain_rows_need_no_adjustment():
    slots = make_slots()
    take(slots, change(new=[init(0, [1], 1, SamplingParams(min_tokens=3)), init(1, [1], 1, SamplingParams(top_k=3))]))
    columns = columns_of(slots, [0, 1])
    assert not columns.is_adjusted


def test_order_of_application():
    """A slot freed, taken and grown in one batch."""
    slots = make_slots()
    take(slots, change(new=[init(1, [1] * 20, 20, SamplingParams())], new_blocks=[(1, [5])]))
    take(slots, change(freed=[1], new=[init(1, [2] * 3, 3, SamplingParams())], new_blocks=[(1, [7, 8])]))
    assert slots.block_tables[1, :int(slots.num_blocks[1])].tolist() == [1, 7, 8]
    assert slots.last_tokens[1] == 2
