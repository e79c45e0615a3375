"""The GPU's attention and rotary kernels against the reference: interpreted on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.attention import TOLERANCE, Case, relative_error
from helpers.triton_interpret import DEVICE

from pelton.kernels.attention import hopper_prefill, reference
from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.attention.triton import DecodeConfig, PrefillConfig
from pelton.kernels.rotary import reference as rotary_reference
from pelton.kernels.rotary import triton as rotary

DECODE = DecodeConfig(tile=32, num_warps=4, num_stages=2, programs_per_processor=2)
PREFILL = PrefillConfig(block_m=32, tile=32, num_warps=4, num_stages=2, use_descriptor=False)
MIXES = {
    "first token": [(0, 1)],
    "decodes": [(5, 1), (31, 1), (32, 1), (130, 1)],
    "long beside short": [(3, 1), (700, 1), (0, 1), (17, 1)],
    "prompts": [(0, 7), (0, 64), (40, 33)],
    "mixed": [(3, 1), (170, 1), (0, 33), (20, 50)],
}


def check(case: Case, **options) -> None:
    options = {"decode_config": DECODE, "prefill_config": PREFILL} | options
    want, got = case.reference(**options), case.run(attention, **options)
    assert got.shape == want.shape
    assert got.dtype == want.dtype == case.q.dtype
    assert relative_error(got, want) <= TOLERANCE[case.q.dtype]


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("rows", MIXES.values(), ids=list(MIXES))
def test_matches_reference(rows, window):
    check(Case(rows, device=DEVICE), window=window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype):
    check(Case(MIXES["mixed"], dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("heads", [(4, 4, 64), (7, 1, 96), (16, 1, 80), (4, 2, 128)], ids=str)
def test_head_layouts(heads):
    check(Case([(50, 1), (20, 1), (3, 40)], heads=heads, device=DEVICE))


@pytest.mark.parametrize("tokens_per_block", [16, 32, 64, 128])
def test_blocks_smaller_and_larger_than_a_tile(tokens_per_block):
    check(Case(MIXES["mixed"], tokens_per_block=tokens_per_block, device=DEVICE), window=40)


@pytest.mark.parametrize("window", [None, 24])
def test_softcap(window):
    check(Case(MIXES["mixed"], spread=2.0, device=DEVICE), window=window, softcap=5.0)


@pytest.mark.parametrize("window", [1, 16, 33])
def test_window_reads_no_older_blocks(window):
    """Blocks that have left the window may hold anything: here NaN, which would spoil the sums."""
    case = Case([(200, 1), (150, 20)], device=DEVICE)
    want = case.reference(window=window)
    for table, first in zip(case.meta.block_tables_host, (201 - window, 151 - window), strict=True):
        case.pool[table[:first // 16]] = float("nan")
    got = case.run(attention, window=window, decode_config=DECODE, prefill_config=PREFILL)
    assert relative_error(got, want) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("hands_out", [False, True])
@pytest.mark.parametrize("segment_cost", [1, 3])
@pytest.mark.parametrize("programs_per_processor", [1, 4])
@pytest.mark.parametrize("slack", [0, 20])
@pytest.mark.parametrize("lens", [(100, 0, 15, 260, 31), (40, 50, 60, 33, 47, 63, 64)], ids=["uneven", "short"])
def test_shares_of_any_size(lens, hands_out, segment_cost, programs_per_processor, slack):
    """However the line of tiles is cut, every piece is counted once."""
    config = dataclasses.replace(DECODE, tile=16, segment_cost=segment_cost, hands_out=hands_out,
                                 programs_per_processor=programs_per_processor, slack=slack)
    check(Case([(n, 1) for n in lens], heads=(4, 2, 16), device=DEVICE), decode_config=config)


def test_the_workspace_is_shared_and_left_clean():
    """One buffer, full of leftovers, serves steps of other sizes one after another."""
    num_bytes = attention.workspace_bytes(8, num_heads=6, num_kv_heads=2, head_dim=32, device=DEVICE)
    workspace = torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=DEVICE)
    for rows in ([(300, 1)] * 3, [(90, 1)] * 8, [(500, 1)]):
        case = Case(rows, device=DEVICE)
        case.meta.workspace = workspace
        plan = attention.plan(case.meta, case.pool, num_heads=6, window=None, decode_config=DECODE)
        want = case.reference()
        for _ in range(2):
            got = attention.attend(case.q, case.kv, case.pool, case.layer, plan, scale=32**-0.5)
            assert relative_error(got, want) <= TOLERANCE[torch.float32]
        assert (plan.decode.counters == 0).all()
        assert workspace.data_ptr() <= plan.decode.sums.data_ptr() < workspace.data_ptr() + num_bytes


def test_rows_that_pad_a_graph_come_out_as_zeros():
    case = Case([(40, 1), (7, 1), (0, 1)], device=DEVICE)
    lens = torch.tensor([41, 0, 1, 0, 0], dtype=torch.int32, device=DEVICE)
    tables = torch.zeros(5, 3, dtype=torch.int32, device=DEVICE)
    tables[0], tables[2, 0] = case.meta.block_tables[0], case.meta.block_tables[2, 0]
    meta = AttentionMetadata.decodes(torch.arange(6, dtype=torch.int32, device=DEVICE), lens, tables,
                                     torch.full((5,), -1, device=DEVICE))
    q = torch.full((5, 6, 32), float("nan"), device=DEVICE)
    q[[0, 2]] = case.q[[0, 2]]
    plan = attention.plan(meta, case.pool, num_heads=6, window=None, decode_config=DECODE)
    got = attention.attend(q, None, case.pool, case.layer, plan, scale=32**-0.5)
    assert (got[[1, 3, 4]] == 0).all()
    assert relative_error(got[[0, 2]], case.reference()[[0, 2]]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("window", [None, 50])
def test_tiles_through_descriptors(window):
    config = dataclasses.replace(PREFILL, use_descriptor=True)
    check(Case([(5, 1), (100, 60), (0, 40)], heads=(6, 2, 48), tokens_per_block=32, device=DEVICE), window=window,
          prefill_config=config)


def test_tiles_from_a_padded_buffer():
    case = Case(MIXES["mixed"], device=DEVICE)
    meta = case.meta
    size = attention.queries_per_tile(case.pool, case.num_heads)
    tiles = attention.cut_tiles(meta.query_lens_host, meta.seq_lens_host, meta.num_decodes, size)
    padded = np.concatenate((tiles, np.full((5, 2), -1, dtype=np.int32)))
    meta.prefill_tiles = torch.from_numpy(padded).to(DEVICE)
    meta.query_lens_host, meta.seq_lens_host, lens = [], [], (meta.query_lens_host, meta.seq_lens_host)
    got = case.run(attention)
    meta.query_lens_host, meta.seq_lens_host = lens
    assert relative_error(got, case.reference()) <= TOLERANCE[torch.float32]


def test_tiles_cover_every_query_once_most_keys_first():
    tiles = attention.cut_tiles([1, 1, 50, 7, 33], [9, 3, 60, 7, 1033], 2, 16)
    covered = sorted((row, query) for row, first in tiles.tolist() for query in range(first, first + 16))
    wanted = {(2, 50), (3, 7), (4, 33)}
    assert [pair for pair in covered if pair[1] < dict(wanted)[pair[0]]] == \
        [(row, query) for row, count in sorted(wanted) for query in range(count)]
    num_keys = [{2: 10, 3: 0, 4: 1000}[row] + first for row, first in tiles.tolist()]
    assert num_keys == sorted(num_keys, reverse=True)
    assert tiles.dtype == np.int32


@pytest.mark.parametrize("num_queries", [1, 15, 16, 17, 914])
@pytest.mark.parametrize("num_decodes", [0, 3])
def test_tiles_of_one_prompt_are_those_it_has_among_others(num_queries, num_decodes):
    lens = [*[1] * num_decodes, num_queries]
    alone = attention.cut_tiles(lens, [length + 700 for length in lens], num_decodes, 16)
    among = attention.cut_tiles([*lens, 40], [*[length + 700 for length in lens], 40], num_decodes, 16)
    assert alone.tolist() == among[among[:, 0] == num_decodes].tolist()
    assert (alone.dtype, alone.flags.c_contiguous) == (np.int32, True)


@pytest.mark.parametrize(("query_lens", "seq_lens", "pays"), [
    ([8000], [8000], True), ([914] * 32, [914] * 32, True), ([100] * 9, [1500] * 9, True),
    ([512], [512], False), ([129] * 64, [129] * 64, False), ([64], [30_000], False),
    ([900] + [20] * 200, [900] + [20] * 200, False)])
def test_hopper_kernel_is_for_long_prompts(query_lens, seq_lens, pays):
    assert hopper_prefill.pays(query_lens, seq_lens) == pays


def test_hopper_kernel_pays_for_the_longest_prompt_if_for_any_rows():
    """What may run is compiled before, and single prompts of up to the most tokens of a step are what that runs."""
    assert all(hopper_prefill.pays([most], [most]) for most in (850, 1024, 8192))
    assert not any(hopper_prefill.pays([num_new] * num_rows, [849] * num_rows)
                   for num_new in (1, 100, 849) for num_rows in (1, 9, 64))
    assert not any(hopper_prefill.pays([849 // num_rows] * num_rows, [30_000] * num_rows) for num_rows in (1, 9, 64))


@pytest.mark.parametrize("head_norm", [False, True])
@pytest.mark.parametrize(("heads", "rotary_dim"), [((6, 2, 32), 32), ((3, 1, 48), 24), ((4, 4, 80), 80)], ids=str)
def test_rotary(heads, rotary_dim, head_norm):
    num_heads, num_kv_heads, head_dim = heads
    case = Case([(20, 1), (5, 1), (3, 9)], heads=heads, device=DEVICE)
    qkv = torch.randn(11, (num_heads + 2 * num_kv_heads) * head_dim, device=DEVICE)
    cos, sin = torch.randn(2, 11, rotary_dim // 2, device=DEVICE)
    norms = torch.rand(2, head_dim, device=DEVICE) + 0.5
    options = {"q_norm": norms[0], "k_norm": norms[1]} if head_norm else {}
    results = []
    for module in (rotary_reference, rotary):
        pool = case.pool.nan_to_num(7.0)
        angles = module.prepare_angles(cos, sin)
        q, kv = module.rotate_and_store(qkv.clone(), angles, pool, 1, case.meta, num_heads=num_heads, **options)
        results.append((q, kv, pool))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_rotary_leaves_the_pool_alone_for_padding_tokens():
    case = Case([(20, 1), (5, 1)], device=DEVICE)
    case.meta.slot_mapping[:] = -1
    before = case.pool.clone()
    rotary.rotate_and_store(torch.randn(2, 10 * 32, device=DEVICE), tuple(torch.randn(2, 2, 16, device=DEVICE)),
                            case.pool, 1, case.meta, num_heads=6)
    torch.testing.assert_close(case.pool, before, equal_nan=True, rtol=0, atol=0)


NEWEST = {"first tokens": [0, 0, 3], "around tiles": [30, 31, 32, 33, 63, 64, 65], "long beside short": [3, 400, 0, 17]}


def rotated_and_attended(case: Case, module, angles, norms: dict, *, window=None, softcap=None, **plan_options):
    """(out, pool) of a module for the case's rows; the newest tokens' slots hold NaN until it writes them."""
    num_kv_heads, head_dim = case.pool.shape[3], case.pool.shape[5]
    pool = case.pool.clone()
    blocks, offsets = case.meta.slots(case.pool.shape[4])
    pool[:, case.layer][blocks, :, :, offsets] = float("nan")
    qkv = torch.cat((case.q, case.kv.flatten(1, 2)), dim=1).flatten(1)
    assert qkv.shape[1] == (case.num_heads + 2 * num_kv_heads) * head_dim
    plan = module.plan(case.meta, pool, num_heads=case.num_heads, window=window, **plan_options)
    out = module.rotate_and_attend(qkv, angles, pool, case.layer, plan, num_heads=case.num_heads,
                                   scale=head_dim**-0.5, softcap=softcap, **norms)
    return out, pool


def check_rotated(cached: list[int], *, heads=(6, 2, 32), rotary_dim=None, has_norm=False, dtype=torch.float32,
                  window=None, softcap=None, prompts=(), tokens_per_block=16, **config) -> None:
    num_tokens, head_dim = len(cached) + sum(new for _, new in prompts), heads[2]
    case = Case([(n, 1) for n in cached] + list(prompts), heads=heads, dtype=dtype, device=DEVICE,
                tokens_per_block=tokens_per_block)
    turns = torch.randn(num_tokens, (rotary_dim or head_dim) // 2, device=DEVICE)
    angles = turns.cos(), turns.sin()
    norms = torch.rand(2, head_dim, device=DEVICE) + 0.5
    norms = {"q_norm": norms[0], "k_norm": norms[1]} if has_norm else {}
    options = {"window": window, "softcap": softcap}
    want, want_pool = rotated_and_attended(case, reference, angles, norms, **options)
    config = {"decode_config": dataclasses.replace(DECODE, **config), "prefill_config": PREFILL}
    got, pool = rotated_and_attended(case, attention, angles, norms, **config, **options)
    assert got.shape == want.shape
    assert got.dtype == want.dtype == dtype
    tolerance = TOLERANCE[dtype] * (2 if has_norm else 1)  # norm and attention round, each in an order of its own
    assert relative_error(got, want) <= tolerance
    assert pool.isnan().equal(want_pool.isnan())
    assert relative_error(pool.nan_to_num(), want_pool.nan_to_num()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cached", NEWEST.values(), ids=list(NEWEST))
def test_rotation_within_attention(cached, dtype, has_norm):
    """Nothing reads from the pool what the same launch writes there."""
    check_rotated(cached, dtype=dtype, has_norm=has_norm)


@pytest.mark.parametrize(("heads", "rotary_dim"), [((7, 1, 96), 96), ((3, 1, 48), 24), ((4, 4, 80), 80),
                                                   ((8, 2, 64), 16), ((17, 1, 32), 32)], ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotation_within_attention_of_other_heads(heads, rotary_dim, has_norm):
    check_rotated([0, 31, 50], heads=heads, rotary_dim=rotary_dim, has_norm=has_norm)


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tokens_per_block", [16, 64])
def test_rotation_within_capped_attention(window, softcap, tokens_per_block):
    check_rotated([0, 31, 32, 90], window=window, softcap=softcap, tokens_per_block=tokens_per_block)


@pytest.mark.parametrize("hands_out", [False, True])
@pytest.mark.parametrize("segment_cost", [1, 3])
@pytest.mark.parametrize("slack", [0, 20])
def test_rotation_in_shares_of_any_size(hands_out, segment_cost, slack):
    check_rotated([100, 0, 15, 260, 31], heads=(4, 2, 16), tile=16, hands_out=hands_out, segment_cost=segment_cost,
                  programs_per_processor=4, slack=slack)


def test_rotation_beside_prompts():
    check_rotated([5, 31], prompts=[(0, 33), (20, 7)])


def test_the_pool_gets_the_bits_that_rotary_writes():
    case = Case([(n, 1) for n in (0, 31, 32, 70)], dtype=torch.bfloat16, device=DEVICE)
    turns = torch.randn(4, 16, device=DEVICE)
    angles = turns.cos(), turns.sin()
    _, pool = rotated_and_attended(case, attention, angles, {}, decode_config=DECODE)
    qkv = torch.cat((case.q, case.kv.flatten(1, 2)), dim=1).flatten(1)
    rotary.rotate_and_store(qkv, angles, case.pool, case.layer, case.meta, num_heads=6)
    assert pool.nan_to_num(7.0).equal(case.pool.nan_to_num(7.0))


def test_rows_that_pad_a_graph_write_nothing():
    pool = torch.randn(3, 2, 2, 2, 16, 32, device=DEVICE)
    meta = AttentionMetadata.decodes(
        torch.arange(4, dtype=torch.int32, device=DEVICE), torch.tensor([1, 0, 0], dtype=torch.int32, device=DEVICE),
        torch.zeros(3, 1, dtype=torch.int32, device=DEVICE), torch.tensor([5, -1, -1], device=DEVICE))
    qkv = torch.full((3, 10 * 32), float("nan"), device=DEVICE)
    qkv[0] = torch.randn(10 * 32)
    angles = torch.ones(3, 16, device=DEVICE), torch.zeros(3, 16, device=DEVICE)
    want = pool.clone()
    want[0, 1, :, :, 5] = qkv[0].view(10, 32)[6:].view(2, 2, 32)
    plan = attention.plan(meta, pool, num_heads=6, window=None, decode_config=DECODE)
    out = attention.rotate_and_attend(qkv, angles, pool, 1, plan, num_heads=6, scale=1.0)
    assert pool.equal(want)
    assert (out[1:] == 0).all()
    assert out[0].view(2, 3, 32).equal(want[0, 1, 1, :, 5][:, None].expand(2, 3, 32))
