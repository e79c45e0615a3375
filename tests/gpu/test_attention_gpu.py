"""Attention and rotary kernels on a real GPU: lengths, batches and graphs that an interpreter is too slow for."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import TOLERANCE, Case, relative_error

from pelton.kernels.attention import hopper_prefill, reference
from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.hopper_prefill import HopperConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.rotary import reference as rotary_reference
from pelton.kernels.rotary import triton as rotary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LLAMA = (32, 8, 128)
MIXES = {
    "decodes": [(n, 1) for n in (0, 1, 15, 16, 63, 64, 127, 128, 1000, 2047)],
    "prompts": [(0, 5), (0, 130), (64, 64), (1000, 257), (3, 700)],
    "mixed": [(3000, 1), (0, 1), (77, 1), (0, 129), (2000, 65)],
}


def check(case: Case, **options) -> None:
    """By every prefill kernel there is for it."""
    want = case.reference(**options)
    for config in prefill_configs(case):
        poison(case)
        got = case.run(attention, prefill_config=config, **options)
        error = relative_error(got, want)
        assert error <= TOLERANCE[case.q.dtype], (config, error)


def prefill_configs(case: Case) -> list:
    shape, features = attention.Shape.of(case.pool, case.num_heads), gpu_features(case.pool.device)
    configs = [attention.prefill_config_for(shape, features)]
    if features.capability == 90 and case.meta.num_decodes < case.meta.num_rows \
            and hopper_prefill.can_attend(shape.head_dim, shape.tokens_per_block, shape.dtype):
        configs += [HopperConfig(), HopperConfig(num_stages=2, takes_turns=False)]
    return configs


def poison(case: Case) -> None:
    """Leaves NaN in the freed memory that the next output will be made of."""
    torch.full(case.q.shape, float("nan"), dtype=case.q.dtype, device="cuda")


@pytest.mark.parametrize("rows", MIXES.values(), ids=list(MIXES))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (100, None), (None, 30.0), (1, 30.0)])
def test_matches_reference(rows, dtype, window, softcap):
    check(Case(rows, heads=LLAMA, tokens_per_block=64, dtype=dtype, device="cuda"), window=window, softcap=softcap)


@pytest.mark.parametrize("tokens_per_block", [16, 32, 64, 128])
@pytest.mark.parametrize("heads", [(28, 4, 128), (4, 4, 128), (32, 32, 96), (16, 8, 256), (16, 1, 64), (8, 2, 80)],
                         ids=str)
def test_head_layouts(heads, tokens_per_block):
    check(Case(MIXES["mixed"], heads=heads, tokens_per_block=tokens_per_block, dtype=torch.bfloat16, device="cuda"))


@pytest.mark.parametrize("rows", [
    [(131_071, 1)],
    [(131_071, 1)] + [(8 * n, 1) for n in range(63)],
    [(50 * n % 3000, 1) for n in range(300)],
    [(1, 1)] * 1100,
    [(100_000, 1), (5, 1), (130_000, 70)],
    [(n, n % 50 + 2) for n in range(200)],
    [(30_000, 300), (0, 4000)],
], ids=["131,072 tokens", "one long row", "300 rows", "1,100 rows", "chunk at 130,000", "200 prompts", "long prompts"])
def test_long_and_many(rows):
    check(Case(rows, heads=(8, 2, 128), tokens_per_block=64, dtype=torch.bfloat16, num_layers=1, layer=0,
               device="cuda"))


def test_repeats_are_bitwise_equal():
    """Whichever program finishes last adds up the pieces: in the order of the keys, so the bits stay."""
    case = Case([(n, 1) for n in (9000, 3, 700, 20_000, 64)], heads=LLAMA, tokens_per_block=64,
                dtype=torch.bfloat16, num_layers=1, layer=0, device="cuda")
    want = case.run(attention)
    for _ in range(100):
        assert case.run(attention).equal(want)


def test_prefill_repeats_are_bitwise_equal():
    case = Case(MIXES["prompts"], heads=LLAMA, tokens_per_block=64, dtype=torch.bfloat16, device="cuda")
    for config in prefill_configs(case):
        want = case.run(attention, prefill_config=config)
        for _ in range(100):
            assert case.run(attention, prefill_config=config).equal(want)


def test_prefill_graph_follows_its_tiles():
    """Tiles, padded with row -1, and lengths change between replays of one graph."""
    cases = [Case(rows, heads=(8, 2, 128), tokens_per_block=64, dtype=torch.bfloat16, device="cuda")
             for rows in ([(0, 400), (70, 130)], [(1000, 5)], [(0, 1), (3, 200), (900, 300)])]
    for config in prefill_configs(cases[0]):
        q = torch.zeros(600, *cases[0].q.shape[1:], dtype=torch.bfloat16, device="cuda")
        pool = torch.zeros(40, *cases[0].pool.shape[1:], dtype=torch.bfloat16, device="cuda")
        query_start, seq_lens = (torch.zeros(n, dtype=torch.int32, device="cuda") for n in (4, 3))
        tables, tiles = (torch.zeros(*shape, dtype=torch.int32, device="cuda") for shape in ((3, 32), (100, 2)))
        meta = AttentionMetadata(num_decodes=0, query_start=query_start, seq_lens=seq_lens, block_tables=tables,
                                 slot_mapping=seq_lens, query_lens_host=[], seq_lens_host=[], prefill_tiles=tiles)
        plan = attention.plan(meta, pool, num_heads=8, window=None, prefill_config=config)
        tiles.fill_(-1)
        attention.attend(q, None, pool, 1, plan, scale=128**-0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attention.attend(q, None, pool, 1, plan, scale=128**-0.5)
        for case in cases:
            num_tokens, num_rows = len(case.q), case.meta.num_rows
            cut = torch.from_numpy(attention.cut_tiles(case.meta.query_lens_host, case.meta.seq_lens_host, 0,
                                                       config.block_m // 4)).cuda()
            tiles.fill_(-1)
            tiles[:len(cut)] = cut
            q[:num_tokens] = case.q
            pool[:len(case.pool)] = case.pool
            query_start[:num_rows + 1] = case.meta.query_start
            seq_lens[:num_rows] = case.meta.seq_lens
            tables[:num_rows, :case.meta.block_tables.shape[1]] = case.meta.block_tables
            out.fill_(float("nan"))
            graph.replay()
            case.meta.num_decodes = 0
            assert relative_error(out[:num_tokens], case.reference()) <= TOLERANCE[torch.bfloat16], config
            assert out[num_tokens:].isnan().all()


@pytest.mark.parametrize("is_one_launch", [False, True])
def test_graph_follows_its_buffers(is_one_launch):
    """Lengths, blocks and slots change between replays of one graph; rows past the real ones come out as zeros."""
    heads, size, num_blocks = (8, 2, 128), 64, 400
    pool = torch.randn(num_blocks, 2, 2, heads[1], size, heads[2], device="cuda").bfloat16()
    qkv = torch.zeros(8, (heads[0] + 2 * heads[1]) * heads[2], device="cuda", dtype=torch.bfloat16)
    workspace = torch.empty(attention.workspace_bytes(8, num_heads=8, num_kv_heads=2, head_dim=128, device="cuda"),
                            dtype=torch.uint8, device="cuda")
    meta = AttentionMetadata.decodes(
        torch.arange(9, dtype=torch.int32, device="cuda"), torch.zeros(8, dtype=torch.int32, device="cuda"),
        torch.zeros(8, 128, dtype=torch.int32, device="cuda"),
        torch.full((8,), -1, dtype=torch.int64, device="cuda"), workspace=workspace)
    cos, sin = torch.randn(2, 8, 64, device="cuda")

    def step():
        angles = rotary.prepare_angles(cos, sin)
        plan = attention.plan(meta, pool, num_heads=8, window=None)
        if is_one_launch:
            return attention.rotate_and_attend(qkv, angles, pool, 1, plan, num_heads=8, scale=128**-0.5)
        q, kv = rotary.rotate_and_store(qkv.clone(), angles, pool, 1, meta, num_heads=8)
        return attention.attend(q, kv, pool, 1, plan, scale=128**-0.5)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for lens in ([1, 5, 8000], [64] * 8, [8192, 1], [], [3, 70, 65, 129, 4000, 17, 1]):
        free = torch.randperm(num_blocks).tolist()
        tables = [[free.pop() for _ in range(-(-n // size))] for n in lens]
        wanted = AttentionMetadata.from_rows([n - 1 for n in lens], [1] * len(lens), tables, num_decodes=len(lens),
                                             tokens_per_block=size, device="cuda") if lens else None
        before = pool.clone()
        qkv.copy_(torch.randn(qkv.shape))
        meta.seq_lens.zero_()
        meta.slot_mapping.fill_(-1)
        if wanted:
            meta.seq_lens[:len(lens)] = wanted.seq_lens
            meta.slot_mapping[:len(lens)] = wanted.slot_mapping
            meta.block_tables[:len(lens), :wanted.block_tables.shape[1]] = wanted.block_tables
        out.fill_(float("nan"))
        graph.replay()
        assert (out[len(lens):] == 0).all()
        if not lens:
            assert pool.equal(before)
            continue
        want_q, kv = rotary_reference.rotate_and_store(
            qkv[:len(lens)], (cos[:len(lens)], sin[:len(lens)]), before, 1, wanted, num_heads=8)
        assert relative_error(pool, before) < 1e-2
        plan = reference.plan(wanted, before, num_heads=8, window=None)
        want = reference.attend(want_q, kv, before, 1, plan, scale=128**-0.5)
        assert relative_error(out[:len(lens)], want) < 1e-2


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_norm", [False, True])
@pytest.mark.parametrize(("heads", "rotary_dim"), [(LLAMA, 128), ((28, 4, 128), 128), ((32, 32, 96), 72),
                                                   ((16, 8, 256), 64), ((3, 1, 80), 80)], ids=str)
def test_rotary(heads, rotary_dim, head_norm, dtype):
    num_heads, num_kv_heads, head_dim = heads
    case = Case([(70, 1), (5, 1), (0, 300)], heads=heads, tokens_per_block=32, dtype=dtype, device="cuda")
    qkv = torch.randn(302, (num_heads + 2 * num_kv_heads) * head_dim, device="cuda").to(dtype)
    cos, sin = torch.randn(2, 302, rotary_dim // 2, device="cuda")
    norms = torch.rand(2, head_dim, device="cuda") + 0.5
    options = {"q_norm": norms[0], "k_norm": norms[1]} if head_norm else {}
    results = []
    for module in (rotary_reference, rotary):
        pool = case.pool.nan_to_num(7.0)
        angles = module.prepare_angles(cos, sin)
        q, kv = module.rotate_and_store(qkv.clone(), angles, pool, 1, case.meta, num_heads=num_heads, **options)
        results.append((q, kv, pool))
    for got, want in zip(results[1], results[0], strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("heads", "rotary_dim"), [(LLAMA, 128), ((28, 4, 128), 128), ((32, 32, 96), 72),
                                                   ((16, 8, 256), 64), ((32, 8, 64), 64)], ids=str)
@pytest.mark.parametrize("lens", [[1], [5000], [1, 2, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129],
                                  [n % 300 + 1 for n in range(0, 7 * 256, 7)], [5000, 3, 700, 129, 1]],
                         ids=["first token", "long", "around tiles", "256 rows", "long beside short"])
def test_rotation_within_attention(lens, heads, rotary_dim, has_norm):
    """As rotary and attention one after the other, whose keys and values it writes to the bit but for the norm's sum;
    the newest tokens' slots hold NaN before, and repeats give the same bits."""
    num_heads, num_kv_heads, head_dim = heads
    case = Case([(n - 1, 1) for n in lens], heads=heads, tokens_per_block=64, dtype=torch.bfloat16, device="cuda")
    qkv = torch.randn(len(lens), (num_heads + 2 * num_kv_heads) * head_dim, device="cuda").bfloat16()
    turns = 100 * torch.rand(len(lens), rotary_dim // 2, device="cuda")
    angles = turns.cos(), turns.sin()
    norms = torch.rand(2, head_dim, device="cuda") + 0.5
    options = {"num_heads": num_heads} | ({"q_norm": norms[0], "k_norm": norms[1]} if has_norm else {})
    blocks, offsets = case.meta.slots(64)
    want_pool, pool = case.pool.clone(), case.pool.clone()
    q, kv = rotary.rotate_and_store(qkv.clone(), angles, want_pool, 1, case.meta, **options)
    want = reference.attend(q, kv, want_pool, 1, reference.plan(case.meta, want_pool, num_heads=num_heads, window=None),
                            scale=head_dim**-0.5)
    plan = attention.plan(case.meta, pool, num_heads=num_heads, window=None)
    results = []
    for _ in range(20):
        pool[:, 1][blocks, :, :, offsets] = float("nan")
        poison(case)
        results.append(attention.rotate_and_attend(qkv.clone(), angles, pool, 1, plan, scale=head_dim**-0.5,
                                                   **options))
        assert relative_error(results[-1], want) <= TOLERANCE[torch.bfloat16]
        assert results[-1].equal(results[0])
    assert pool.isnan().equal(want_pool.isnan())
    assert relative_error(pool.nan_to_num(), want_pool.nan_to_num()) < (1e-3 if has_norm else 1e-9)


@pytest.mark.parametrize("num_rows", [1, 8, 40, 200])
def test_first_keys_are_read_before_the_product_has_ended_and_no_other(num_rows):
    """Layers one after the other in one graph, each reading what a product has just written, give what they give when
    every launch waits for the one before."""
    case = Case([(n % 290, 1) for n in range(17, 17 + 13 * num_rows, 13)], heads=LLAMA, tokens_per_block=64,
                dtype=torch.bfloat16, num_layers=8, device="cuda")
    case.pool.nan_to_num_(0.5)
    weight = torch.randn(32 * 128, 48 * 128, device="cuda").mul_(0.02).bfloat16()
    turns = 100 * torch.rand(num_rows, 64, device="cuda")
    angles = turns.cos(), turns.sin()
    first = torch.randn(num_rows, 32 * 128, device="cuda").bfloat16()

    def step(pool, *, waits: bool):
        plan = attention.plan(case.meta, pool, num_heads=32, window=None)
        x = first
        for layer in range(8):
            qkv = x @ weight
            if waits:
                torch.cuda.synchronize()
            x = attention.rotate_and_attend(qkv, angles, pool, layer, plan, num_heads=32, scale=128**-0.5)
            if waits:
                torch.cuda.synchronize()
        return x

    want_pool, pool = case.pool.clone(), case.pool.clone()
    want = step(want_pool, waits=True)
    step(pool, waits=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(pool, waits=False)
    for _ in range(5):
        pool.copy_(case.pool)
        graph.replay()
        assert got.equal(want)
        assert pool.equal(want_pool)
