"""Short prompts through a graph's padded buffers, in the GPU's kernels, interpreted where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.triton_interpret import DEVICE

pytest.importorskip("triton")

from pelton.cache.pool import KvPool
from pelton.config import ModelConfig, RopeConfig
from pelton.kernels.registry import load_ops
from pelton.models.decoder import Decoder
from pelton.runner import prompt_graphs
from pelton.runner.device import HostStaging
from pelton.runner.inputs import lay_out, make_inputs
from pelton.runner.padding import token_sizes
from pelton.runner.prompt_graphs import MAX_TOKENS, PromptGraphs, max_rows
from pelton.runner.random_weights import make_random_weights
from pelton.runner.slots import Slots
from pelton.types import Batch, SamplingParams, SlotInit

ROPES = {"plain": RopeConfig(),
         "by length": RopeConfig(kind="dynamic", factor=2.0, original_max_position_embeddings=16)}


class Staging(HostStaging):
    """Copies to fixed memory as the GPU's does, on a CPU."""

    def write_into(self, target, num_bytes, write):
        packed = np.full(num_bytes, 0xcd, dtype=np.uint8)
        write(packed)
        target[:num_bytes] = torch.from_numpy(packed)
        target[num_bytes:] = 0xab  # means nothing


class Rerun:
    """A graph that runs its launches again, into the memory of its result."""

    def __init__(self, run):
        self.run, self.result = run, run().clone()

    def replay(self):
        self.result.copy_(self.run())


def make_parts(rope, max_num_tokens, monkeypatch):
    monkeypatch.setattr(prompt_graphs, "load_ops", lambda device: load_ops("cuda"))
    monkeypatch.setattr(prompt_graphs, "capture_graph",
                        lambda run, memory: (graph := Rerun(run), graph.result))
    config = ModelConfig(architecture="LlamaForCausalLM", vocab_size=96, hidden_size=32, intermediate_size=48,
                         num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=128,
                         dtype="float32", rope=rope)
    weights = make_random_weights(config, torch.float32, torch.device(DEVICE), 3)
    decoder = Decoder(config, weights, implementation="cuda")
    slots = Slots(num_slots=8, max_seq_len=64, tokens_per_block=16, vocab_size=96, device=torch.device("cpu"))
    slots.staging = Staging()
    pools = [KvPool(24, 2, 2, 16, 16, torch.float32, torch.device(DEVICE)) for _ in range(2)]
    for pool in pools:
        pool.data.fill_(7.0)
    graphs = PromptGraphs(decoder, pools[0], slots, max_num_tokens)
    graphs.capture(None)
    return decoder, slots, pools, graphs


def prompts(draw, lengths, *, first_slot=0, used=()):
    """A batch of whole prompts, in blocks that are not `used`."""
    new, blocks = [], iter(block for block in draw.permutation(24).tolist() if block not in used)
    for slot, length in enumerate(lengths, first_slot):
        table = [next(blocks) for _ in range(-(-(length + 1) // 16))]
        new.append(SlotInit(slot, draw.integers(0, 96, length).tolist(), length, table, SamplingParams(), 0, ()))
    num = len(lengths)
    return Batch(0, list(range(first_slot, first_slot + num)), [0] * num, list(lengths), [True] * num, 0, new, [], [])


def decodes_beside(draw, slots, first, lengths):
    """A batch in which the rows of `first`, which have run, decode, beside whole prompts. Sets their last tokens."""
    for slot in first.slots:
        slots.last_tokens[slot] = int(draw.integers(0, 96))
    batch = prompts(draw, lengths, first_slot=len(first.slots), used=[b for init in first.new for b in init.block_ids])
    starts = [init.num_prompt_tokens for init in first.new]
    num = len(starts)
    return Batch(1, [*first.slots, *batch.slots], [*starts, *batch.starts], [1] * num + batch.num_tokens,
                 [True] * (num + len(lengths)), num, batch.new, [], [])


def check(parts, batch, rope):
    """One step by graph and without, each over a pool of its own."""
    decoder, slots, pools, graphs = parts
    slots.apply(batch)
    layout = lay_out(batch, slots, rope)
    assert graphs.takes(layout)
    with torch.inference_mode():
        got, sampled, row_index = graphs.replay(layout)
        inputs = make_inputs(layout, slots)
        want = decoder.forward(inputs.token_ids, inputs.positions, pools[1], inputs.meta)
    assert float((got - want).norm() / want.norm()) < 1e-5
    assert len(row_index) >= len(inputs.row_index)
    assert torch.equal(row_index[:len(inputs.row_index)], inputs.row_index)
    assert torch.equal(sampled.slot_index, inputs.sampled.slot_index)
    assert torch.equal(sampled.position_index, inputs.sampled.position_index)
    torch.testing.assert_close(pools[0].data, pools[1].data, rtol=1e-4, atol=1e-4)  # padding wrote nothing


def free(slots, num):
    slots.apply(Batch(0, [], [], [], [], 0, [], [], list(range(num))))


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
@pytest.mark.parametrize("rope", ROPES)
def test_padded_steps_are_those_without_padding(rope, monkeypatch):
    parts = make_parts(ROPES[rope], 40, monkeypatch)
    draw = np.random.default_rng()
    for lengths in ([1], [16], [5, 17, 9], [40], [3, 1]):
        check(parts, prompts(draw, lengths), ROPES[rope])
        free(parts[1], len(lengths))


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
@pytest.mark.parametrize("rope", ROPES)
def test_rows_that_decode_beside_prompts(rope, monkeypatch):
    parts = make_parts(ROPES[rope], 40, monkeypatch)
    draw = np.random.default_rng()
    for firsts, lengths in (([20], [7]), ([3, 30], [38]), ([5, 6], [1])):
        first = prompts(draw, firsts)
        check(parts, first, ROPES[rope])
        check(parts, decodes_beside(draw, parts[1], first, lengths), ROPES[rope])
        free(parts[1], len(firsts) + len(lengths))


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
def test_steps_that_do_not_fit_are_left(monkeypatch):
    _, slots, _, graphs = make_parts(RopeConfig(), 40, monkeypatch)
    draw = np.random.default_rng(0)
    for lengths, takes in (([41], False), ([2] * 6, False), ([2] * 4, True), ([40], True)):
        batch = prompts(draw, lengths)
        slots.apply(batch)
        assert graphs.takes(lay_out(batch, slots, RopeConfig())) is takes
        free(slots, len(lengths))
    first = prompts(draw, [20])
    slots.apply(first)
    batch = decodes_beside(draw, slots, first, [4])
    slots.apply(batch)
    for most, takes in ((21, True), (20, False)):
        monkeypatch.setattr(prompt_graphs, "MAX_DECODED_LEN", most)
        assert graphs.takes(lay_out(batch, slots, RopeConfig())) is takes


@pytest.mark.parametrize("most", [1, 16, 24, 256, 1000, 1024, 8192])
def test_every_size_takes_some_rows(most):
    sizes = token_sizes(min(most, MAX_TOKENS))
    assert len(sizes) <= 40
    assert all(max_rows(size) >= 4 for size in sizes)


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
@pytest.mark.parametrize("rope", ROPES)
def test_steps_that_are_padded_without_a_graph_are_those_without_padding(rope, monkeypatch):
    decoder, slots, pools, _ = make_parts(ROPES[rope], 16, monkeypatch)
    draw = np.random.default_rng()
    first = prompts(draw, [20, 3])
    slots.apply(first)
    batch = decodes_beside(draw, slots, first, draw.integers(1, 30, 2).tolist())
    slots.apply(batch)
    plain = lay_out(batch, slots, ROPES[rope])
    num_more = int(draw.integers(0, 20))
    padded = plain.padded(plain.num_tokens + num_more, 8)
    got = []
    with torch.inference_mode():
        for layout, pool in zip((plain, padded), pools, strict=True):
            inputs = make_inputs(layout, slots)
            hidden = decoder.forward(inputs.token_ids, inputs.positions, pool, inputs.meta)
            got.append((hidden, decoder.logits(hidden.index_select(0, inputs.row_index)), inputs))
    (hidden, logits, want), (padded_hidden, padded_logits, inputs) = got
    assert padded_hidden.shape[0] == plain.num_tokens + num_more
    assert padded_logits.shape[0] == 8
    torch.testing.assert_close(padded_hidden[:plain.num_tokens], hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded_logits[:4], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pools[1].data, pools[0].data, rtol=1e-4, atol=1e-4)  # padding wrote nothing
    assert torch.equal(inputs.sampled.slot_index, want.sampled.slot_index)
    assert torch.equal(inputs.sampled.position_index, want.sampled.position_index)
