"""The GPU's sampler at the size of real vocabularies against the CPU's, which is tested against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.sampling import assert_same_draw, make_columns, make_logits

from pelton.kernels.sampling import cpu
from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.reference import SamplingRow
from pelton.kernels.sampling.state import SlotParams
from pelton.types import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PARAMS = [
    SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(temperature=0.7, top_k=1),
    SamplingParams(top_k=50), SamplingParams(top_k=1500), SamplingParams(top_k=3000, temperature=1.5),
    SamplingParams(top_k=60_000, temperature=2.0), SamplingParams(top_k=2**31 - 1), SamplingParams(top_p=1e-9),
    SamplingParams(top_p=0.5), SamplingParams(top_p=0.9), SamplingParams(top_p=0.999), SamplingParams(min_p=0.05),
    SamplingParams(min_p=1e-4, temperature=1.3), SamplingParams(top_p=0.9, min_p=0.01, temperature=1.2),
    SamplingParams(top_k=40, top_p=0.8, min_p=0.02), SamplingParams(top_k=20_000, top_p=0.95, temperature=3.0),
]


def draw_on_gpu(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    num_rows, vocab_size = logits.shape
    columns = make_columns(rows, vocab_size)
    state = SlotParams(num_rows, vocab_size, torch.device("cuda"))
    state.params.copy_(torch.from_numpy(state.pack([row.params for row in rows])))
    state.seeds.copy_(torch.tensor([row.seed for row in rows]))
    positions = torch.from_numpy(columns.position.astype(np.int32)).cuda()
    device_rows = state.rows(torch.arange(num_rows, device="cuda"), positions)
    tokens = sampler.sample(logits.cuda(), device_rows, truncates=bool(columns.truncates(vocab_size).any()))
    return tokens.tolist()


@pytest.mark.parametrize("vocab_size", [128_256, 151_936, 50_257])
@pytest.mark.parametrize("kind", ["normal", "flat", "peaked", "bfloat16", "masked", "offset"])
def test_draws_what_the_cpu_draws(kind, vocab_size):
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    rows = [SamplingRow(params=params, prompt_ids=(1,) * (i % 5 + 1), seed=seed + i)
            for i, params in enumerate(PARAMS)]
    logits = make_logits(kind if kind == "bfloat16" else "normal", len(rows), vocab_size, generator)
    if kind == "flat":
        logits /= 10
    elif kind == "peaked":
        rank = torch.rand(logits.shape, generator=generator).argsort(dim=-1)
        logits = logits / 3 - 2.0 * torch.log1p(rank.float())
    elif kind == "masked":
        logits[:, torch.rand(vocab_size, generator=generator) < 0.999] = -torch.inf
    elif kind == "offset":
        logits = logits / 50 + 100.0
    expected = cpu.sample(logits.clone(), make_columns(rows, vocab_size)).tolist()
    drawn = draw_on_gpu(logits, rows)
    assert drawn == draw_on_gpu(logits, rows), "another draw gives other tokens"
    for i, row in enumerate(rows):
        if drawn[i] != expected[i]:  # as float32 and float64 may differ
            assert_same_draw(logits[i], row, drawn[i])


def test_equal_logits():
    """All tokens tie: the kept set is the lowest ids."""
    rows = [SamplingRow(params=params, seed=i) for i, params in enumerate(PARAMS)]
    logits = torch.full((len(rows), 30_000), -7.25)
    expected = cpu.sample(logits.clone(), make_columns(rows, 30_000)).tolist()
    assert draw_on_gpu(logits, rows) == expected


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=12), SamplingParams(top_p=0.8)])
def test_frequencies(params):
    """A chi-square test over seeds; 45 is beyond the 99.99th percentile of 15 degrees of freedom."""
    num_rows = 20_000
    logits = torch.linspace(0, 3, 16)
    state = SlotParams(num_rows, 16, torch.device("cuda"))
    state.params.copy_(torch.from_numpy(state.pack([params] * num_rows)))
    state.seeds.copy_(torch.randint(-2**63, 2**63 - 1, (num_rows,)))
    index = torch.arange(num_rows, device="cuda")
    tokens = sampler.sample(logits.cuda().expand(num_rows, -1).contiguous(), state.rows(index, index.int()),
                            truncates=params != SamplingParams())
    probs = logits.double().softmax(0)
    if params.top_k:
        probs[:-params.top_k] = 0
    if params.top_p < 1:  # the mass of the likelier ones is short of top_p
        probs[torch.flip(torch.flip(probs, [0]).cumsum(0), [0]) - probs >= params.top_p] = 0
    expected = probs / probs.sum() * num_rows
    counts = torch.bincount(tokens.cpu(), minlength=16).double()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < 45
