"""Paged attention on the CPU against the reference, on fresh random inputs in a pool full of NaN elsewhere."""

from __future__ import annotations

import random

import pytest
import torch

from pelton.kernels.attention import cpu, reference
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.rotary import cpu as rotary_cpu
from pelton.kernels.rotary import reference as rotary_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
BLOCK = 16


class Case:
    """Rows (cached tokens, new tokens) with random q, k, v in a pool whose other slots are NaN."""

    def __init__(self, rows: list[tuple[int, int]], *, heads: tuple[int, int, int] = (6, 2, 32), spread: float = 1.0,
                 dtype: torch.dtype = torch.float32, num_layers: int = 2, layer: int = 1):
        num_heads, num_kv_heads, head_dim = heads
        num_blocks = [-(-(cached + new) // BLOCK) for cached, new in rows]
        ids = random.sample(range(sum(num_blocks) + 5), sum(num_blocks))
        tables = [[ids.pop() for _ in range(n)] for n in num_blocks]
        self.layer = layer
        self.pool = torch.full((sum(num_blocks) + 5, num_layers, 2, num_kv_heads, BLOCK, head_dim), float("nan"),
                               dtype=dtype)
        new_kv = []
        for (cached, new), table in zip(rows, tables, strict=True):
            kv = torch.randn(cached + new, 2, num_kv_heads, head_dim).mul(spread).to(dtype)
            for position in range(cached + new):
                self.pool[table[position // BLOCK], layer, :, :, position % BLOCK] = kv[position]
            new_kv.append(kv[cached:])
        self.kv = torch.cat(new_kv)
        self.q = torch.randn(self.kv.shape[0], num_heads, head_dim).mul(spread).to(dtype)
        self.meta = AttentionMetadata.from_rows(
            [cached for cached, _ in rows], [new for _, new in rows], tables,
            num_decodes=sum(new == 1 for _, new in rows), tokens_per_block=BLOCK)

    def run(self, module, *, window: int | None = None, softcap: float | None = None):
        plan = module.plan(self.meta, self.pool, num_heads=self.q.shape[1], window=window)
        return module.attend(self.q.clone(), self.kv.clone(), self.pool, self.layer, plan,
                             scale=self.q.shape[-1] ** -0.5, softcap=softcap)

    def check(self, **options) -> None:
        want, got = self.run(reference, **options), self.run(cpu, **options)
        assert got.shape == want.shape
        assert got.dtype == want.dtype == self.q.dtype
        error = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= TOLERANCE[self.q.dtype], error


MIXES = {
    "one decode": [(40, 1)],
    "first token": [(0, 1)],
    "decodes": [(5, 1), (15, 1), (16, 1), (31, 1)],
    "whole prompts": [(0, 7), (0, 64), (0, 100)],
    "chunks": [(16, 5), (37, 90), (129, 64)],
    "mixed": [(3, 1), (70, 1), (0, 33), (20, 70)],
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 1, 20, 300])
@pytest.mark.parametrize("rows", MIXES.values(), ids=list(MIXES))
def test_matches_reference(rows, window, dtype):
    Case(rows, dtype=dtype).check(window=window)


@pytest.mark.parametrize("heads", [(4, 4, 16), (7, 1, 64), (8, 2, 128), (4, 2, 80)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_layouts(heads, dtype):
    Case(MIXES["mixed"], heads=heads, dtype=dtype).check()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 24])
def test_softcap(window, dtype):
    Case(MIXES["mixed"], dtype=dtype, spread=2.0).check(window=window, softcap=5.0)


def test_softcap_changes_the_result():
    case = Case(MIXES["mixed"], spread=2.0)
    assert (case.run(cpu) - case.run(cpu, softcap=2.0)).abs().max() > 0.1


def test_rotation_and_attention_in_one_call():
    """Softcap, window and head norms get where they belong."""
    case = Case(MIXES["mixed"])
    num_tokens = len(case.q)
    qkv = torch.cat((case.q, case.kv.flatten(1, 2)), dim=1).flatten(1)
    turns = torch.randn(num_tokens, 16)
    options = {"num_heads": 6, "scale": 0.3, "softcap": 5.0, "q_norm": torch.rand(32), "k_norm": torch.rand(32),
               "eps": 1e-5}
    results = []
    for op, rotary in ((reference, rotary_reference), (cpu, rotary_cpu)):
        pool = case.pool.clone()
        plan = op.plan(case.meta, pool, num_heads=6, window=20)
        angles = rotary.prepare_angles(turns.cos(), turns.sin())
        out = op.rotate_and_attend(qkv.clone(), angles, pool, 1, plan, **options)
        results.append((out, pool.nan_to_num(7.0)))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert not results[1][1].equal(case.pool.nan_to_num(7.0))


def test_lengths_far_apart_run_in_groups():
    rows = [(n, 1) for n in (3, 900, 20, 850, 7, 400, 25, 12, 410)]
    case = Case(rows, dtype=torch.bfloat16)
    plan = cpu.plan(case.meta, case.pool, num_heads=6, window=None)
    assert len(plan.groups) > 1
    assert sorted(row for group in plan.groups for row in group.rows.tolist()) == list(range(len(rows)))
    case.check()
    case.check(window=50)


def test_window_reads_no_older_blocks():
    """Blocks that have left the window may hold anything: here NaN, which would spoil the sums."""
    case = Case([(200, 1), (150, 20)], dtype=torch.float32)
    want = case.run(reference, window=30)
    for table, first in zip(case.meta.block_tables_host, (171, 121), strict=True):
        case.pool[table[: first // BLOCK]] = float("nan")
    torch.testing.assert_close(case.run(cpu, window=30), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [MIXES["decodes"], MIXES["chunks"]], ids=["decodes", "chunks"])
def test_large_scores_keep_their_precision(rows):
    """Scores of dozens (their deviation here is 16), as models with large key biases have: rounded to bfloat16 they
    would be off by a tenth and more."""
    Case(rows, dtype=torch.bfloat16, heads=(6, 2, 64), spread=4.0).check()


def test_a_long_context_takes_smaller_chunks(monkeypatch):
    monkeypatch.setattr(cpu, "_MAX_SCORES", 6 * 170 * 9)
    Case([(100, 70), (0, 130)]).check()
    Case([(100, 70), (0, 130)]).check(window=40)


def test_values_of_other_layers_stay_untouched():
    case = Case(MIXES["mixed"])
    case.run(cpu)
    assert case.pool[:, 0].isnan().all()


def test_metadata_slots_follow_the_block_tables():
    meta = AttentionMetadata.from_rows([30, 0], [1, 18], [[7, 3], [2, 9]], num_decodes=1, tokens_per_block=16)
    assert meta.slot_mapping.tolist() == [3 * 16 + 14, *range(32, 48), 9 * 16, 9 * 16 + 1]
    assert meta.seq_lens.tolist() == [31, 18]
    assert meta.query_start.tolist() == [0, 1, 19]
    blocks, offsets = meta.slots(16)
    assert (blocks * 16 + offsets).equal(meta.slot_mapping)
