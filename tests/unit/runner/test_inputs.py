"""The step's tensors against the slow constructor, over random batches."""

import numpy as np
import pytest
import torch

from pelton.config import RopeConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.models.rope import rope_length
from pelton.runner.inputs import _lay_out_rows, lay_out, make_inputs
from pelton.runner.slots import Slots
from pelton.types import Batch, SamplingParams, SlotInit


def random_batch(rng, slots, size):
    """Rows in distinct slots with blocks in random order; the slots have taken them."""
    num_rows = int(rng.integers(1, 9))
    num_decodes = int(rng.integers(0, num_rows + 1))
    free_blocks = rng.permutation(400).tolist()
    rows, new, tables, known = [], [], [], []
    for row, slot in enumerate(rng.permutation(slots.num_slots)[:num_rows].tolist()):
        token_ids = rng.integers(0, 1000, int(rng.integers(2, 90))).tolist()
        start = int(rng.integers(0, len(token_ids)))
        num = 1 if row < num_decodes else int(rng.integers(1, len(token_ids) - start + 1))
        start = len(token_ids) if row < num_decodes else start
        table = [free_blocks.pop() for _ in range(-(-(start + num) // size) + int(rng.integers(0, 2)))]
        sampling = SamplingParams(max_tokens=int(rng.integers(1, 30)))
        new.append(SlotInit(slot, token_ids, len(token_ids) - 1, table, sampling, 0, ()))
        rows.append((slot, start, num, start + num >= len(token_ids)))
        tables.append(table)
        known.append(token_ids)
    columns = [list(column) for column in zip(*rows)]
    batch = Batch(0, *columns, num_decodes, new, [], [])
    slots.apply(batch)
    return batch, tables, known


def make_slots(size):
    return Slots(num_slots=10, max_seq_len=128, tokens_per_block=size, vocab_size=1000, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("attempt", range(8))
def test_agrees_with_the_slow_constructor(size, attempt):
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    slots = make_slots(size)
    batch, tables, known = random_batch(np.random.default_rng(seed), slots, size)
    inputs = make_inputs(lay_out(batch, slots, RopeConfig()), slots)
    slow = AttentionMetadata.from_rows(batch.starts, batch.num_tokens, tables, num_decodes=batch.num_decodes,
                                       tokens_per_block=size)
    for name in ("num_decodes", "query_lens_host", "seq_lens_host"):
        assert getattr(inputs.meta, name) == getattr(slow, name), name
    for name in ("query_start", "seq_lens", "slot_mapping"):
        fast_tensor, slow_tensor = getattr(inputs.meta, name), getattr(slow, name)
        assert fast_tensor.dtype == slow_tensor.dtype
        assert fast_tensor.tolist() == slow_tensor.tolist(), name
    for row, stop in enumerate(slow.seq_lens_host):
        used = -(-stop // size)
        assert inputs.meta.block_tables[row, :used].tolist() == tables[row][:used]
    assert inputs.meta.block_tables.dtype == torch.int32
    assert inputs.meta.rope_lens is None
    tokens, positions = [], []
    for start, num, ids in zip(batch.starts, batch.num_tokens, known, strict=True):
        tokens += [ids[-1]] if start == len(ids) else ids[start:start + num]
        positions += range(start, start + num)
    assert inputs.token_ids.tolist() == tokens
    assert inputs.positions.tolist() == positions
    assert inputs.token_ids.dtype == inputs.positions.dtype == torch.int64
    ends = np.cumsum(batch.num_tokens) - 1
    assert inputs.row_index.tolist() == ends[batch.is_sampled].tolist()
    assert inputs.sampled.slots.tolist() == batch.sampled_slots
    stops = np.add(batch.starts, batch.num_tokens)
    assert inputs.sampled.slot_index.tolist() == batch.sampled_slots
    assert inputs.sampled.position_index.tolist() == stops[batch.is_sampled].tolist()
    assert inputs.sampled.positions.tolist() == stops[batch.is_sampled].tolist()


@pytest.mark.parametrize("rope", [RopeConfig(), RopeConfig(kind="dynamic", factor=2.0),
                                  RopeConfig(kind="longrope", factor=2.0)], ids=lambda rope: rope.kind)
def test_a_single_prompt_is_laid_out_as_any_batch(rope):
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        size = int(rng.choice([16, 32, 64]))
        slots, slot = make_slots(size), int(rng.integers(0, 10))
        token_ids = rng.integers(0, 1000, int(rng.integers(1, 128))).tolist()
        start = int(rng.integers(0, len(token_ids)))
        num = int(rng.integers(1, len(token_ids) - start + 1))
        table = rng.permutation(200)[:int(rng.integers(-(-(start + num) // size), 128 // size + 1))].tolist()
        sampling = SamplingParams(max_tokens=9, prompt_logprobs=int(rng.integers(0, 3)) or None)
        batch = Batch(0, [slot], [start], [num], [start + num == len(token_ids)], 0,
                      [SlotInit(slot, token_ids, len(token_ids), table, sampling, 0, ())], [], [])
        slots.apply(batch)
        got, want = vars(lay_out(batch, slots, rope)), vars(_lay_out_rows(batch, slots, rope))
        assert got.keys() == want.keys()
        for name, value in want.items():
            if isinstance(value, np.ndarray):
                assert got[name].dtype == value.dtype, name
                assert got[name].tolist() == value.tolist(), name
            elif name == "prompt_rows":
                assert [(row.slot, row.first_row, row.targets.tolist(), row.num_top) for row in got[name]] == \
                    [(row.slot, row.first_row, row.targets.tolist(), row.num_top) for row in value]
            else:
                assert got[name] == value, name


@pytest.mark.parametrize("wrong", ["no tokens", "not known", "past its blocks", "free"])
def test_a_single_prompt_that_cannot_be_is_caught(wrong):
    slots = make_slots(16)
    new = [SlotInit(1, [1] * 40, 40, [3, 4], SamplingParams(), 0, ())]
    num = {"no tokens": 0, "not known": 41, "past its blocks": 33, "free": 5}[wrong]
    slots.apply(Batch(0, [], [], [], [], 0, new, [], []))
    with pytest.raises(AssertionError, match="row"):
        lay_out(Batch(1, [2 if wrong == "free" else 1], [0], [num], [False], 0, [], [], []), slots, RopeConfig())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_lengths(kind):
    rope = RopeConfig(kind=kind, factor=2.0, original_max_position_embeddings=32)
    slots = make_slots(16)
    batch, _, _ = random_batch(np.random.default_rng(1), slots, 16)
    inputs = make_inputs(lay_out(batch, slots, rope), slots)
    expected = []
    for init, start, num in zip(batch.new, batch.starts, batch.num_tokens, strict=True):
        total = min(128, init.num_prompt_tokens + init.sampling.max_tokens)
        expected += [rope_length(rope, position, num_prompt_tokens=init.num_prompt_tokens, max_total_tokens=total)
                     for position in range(start, start + num)]
    assert inputs.meta.rope_lens.tolist() == expected
