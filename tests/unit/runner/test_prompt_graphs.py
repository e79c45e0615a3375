"""Short prompts through a graph's padded buffers, in the GPU's kernels, interpreted where there is no GPU."""

from __future__ import annotations

import itertools

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
from pelton.runner.device import HostStaging, pack, pack_places
from pelton.runner.inputs import lay_out, make_inputs
from pelton.runner.prompt_graphs import PromptGraphs, max_rows, prompt_graph_sizes
from pelton.runner.random_weights import make_random_weights
from pelton.runner.slots import Slots
from pelton.types import Batch, SamplingParams, SlotInit

ROPES = {"plain": RopeConfig(),
         "by length": RopeConfig(kind="dynamic", factor=2.0, original_max_position_embeddings=16)}


class Staging(HostStaging):
    """Copies to fixed memory as the GPU's does, on a CPU."""

    def put_into(self, target, *arrays):
        places, num_bytes = pack_places(arrays)
        packed = np.zeros(num_bytes, dtype=np.uint8)
        pack(arrays, places, packed)
        target[:num_bytes] = torch.from_numpy(packed)


class Rerun:
    """A graph that runs its launches again, into the memory of its result."""

    def __init__(self, run):
        self.run, self.result = run, run().clone()

    def replay(self):
        self.result.copy_(self.run())


def make_parts(rope, max_num_tokens, monkeypatch):
    monkeypatch.setattr(prompt_graphs, "load_ops", lambda device: load_ops("cuda"))
    monkeypatch.setattr(prompt_graphs, "capture_graph",
                        lambda run, stream, memory: (graph := Rerun(run), graph.result))
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
    graphs.capture(None, None)
    return decoder, slots, pools, graphs


def prompts(draw, lengths):
    """A batch of whole prompts."""
    new, blocks = [], iter(draw.permutation(24).tolist())
    for slot, length in enumerate(lengths):
        table = [next(blocks) for _ in range(-(-length // 16))]
        new.append(SlotInit(slot, draw.integers(0, 96, length).tolist(), length, table, SamplingParams(), 0, ()))
    num = len(lengths)
    return Batch(0, list(range(num)), [0] * num, list(lengths), [True] * num, 0, new, [], [])


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
@pytest.mark.parametrize("rope", ROPES)
def test_padded_steps_are_those_without_padding(rope, monkeypatch):
    decoder, slots, pools, graphs = make_parts(ROPES[rope], 40, monkeypatch)
    draw = np.random.default_rng()
    for lengths in ([1], [16], [5, 17, 9], [40], [3, 1]):
        batch = prompts(draw, lengths)
        slots.apply(batch)
        layout = lay_out(batch, slots, ROPES[rope])
        assert graphs.takes(layout)
        got, sampled, row_index = graphs.replay(layout)
        inputs = make_inputs(layout, slots)
        want = decoder.forward(inputs.token_ids, inputs.positions, pools[1], inputs.meta)
        assert float((got - want).norm() / want.norm()) < 1e-5
        assert torch.equal(row_index, inputs.row_index)
        assert torch.equal(sampled.slot_index, inputs.sampled.slot_index)
        assert torch.equal(sampled.position_index, inputs.sampled.position_index)
        torch.testing.assert_close(pools[0].data, pools[1].data, rtol=1e-4, atol=1e-4)  # padding wrote nothing
        slots.apply(Batch(0, [], [], [], [], 0, [], [], batch.slots))


@pytest.mark.skipif(DEVICE == "cuda", reason="slots are on the CPU; tests/gpu runs whole steps")
def test_steps_that_do_not_fit_are_left(monkeypatch):
    _, slots, _, graphs = make_parts(RopeConfig(), 40, monkeypatch)
    draw = np.random.default_rng(0)
    for lengths, takes in (([41], False), ([2] * 5, False), ([2] * 4, True), ([40], True)):
        batch = prompts(draw, lengths)
        slots.apply(batch)
        assert graphs.takes(lay_out(batch, slots, RopeConfig())) is takes
        slots.apply(Batch(0, [], [], [], [], 0, [], [], batch.slots))
    batch = prompts(draw, [3, 3])
    slots.apply(batch)
    batch.starts, batch.num_tokens, batch.num_decodes = [3, 0], [1, 3], 1
    assert not graphs.takes(lay_out(batch, slots, RopeConfig()))


@pytest.mark.parametrize("most", [1, 16, 24, 256, 1000, 1024, 8192])
def test_sizes_are_few_and_close(most):
    sizes = prompt_graph_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(most, prompt_graphs.MAX_TOKENS)
    assert len(sizes) <= 32
    assert all(after - before <= max(16, before / 8) for before, after in itertools.pairwise(sizes))
    assert all(max_rows(size) >= 4 for size in sizes)
