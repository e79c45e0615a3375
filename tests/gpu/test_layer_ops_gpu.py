"""Norm, activation, rotary and the filling of a graph's buffers on a real GPU, against their references."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import TOLERANCE, relative_error

from pelton.kernels.activation import reference as activation_reference
from pelton.kernels.activation import triton as activation
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.decode_rows import reference as decode_rows_reference
from pelton.kernels.decode_rows import triton as decode_rows
from pelton.kernels.decode_rows.reference import DecodeBuffers
from pelton.kernels.norm import reference as norm_reference
from pelton.kernels.norm import triton as norm
from pelton.kernels.rotary import reference as rotary_reference
from pelton.kernels.rotary import triton as rotary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROWS = (1, 3, 64, 257)


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh memory is full of NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    assert relative_error(got, want) <= TOLERANCE[got.dtype]  # NaN is no less than anything


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [64, 96, 2304, 4096, 8192])
def test_norms(dtype, num_rows, width):
    x, residual, weight = (random(n, width, dtype=dtype) for n in (num_rows, num_rows, 1))
    for offset in (0.0, 1.0):
        ours = norm.prepare_weight(weight[0], offset)
        reference = norm_reference.prepare_weight(weight[0], offset)
        check(norm.rms_norm(x, ours, 1e-5), norm_reference.rms_norm(x, reference, 1e-5))
        wide = random(num_rows, width + 32, dtype=dtype)
        check(norm.rms_norm(wide[:, 32:], ours, 1e-5), norm_reference.rms_norm(wide[:, 32:], reference, 1e-5))
        got = norm.add_rms_norm(x.clone(), residual.clone(), ours, 1e-5)
        want = norm_reference.add_rms_norm(x, residual, reference, 1e-5)
        check(got[1], want[1])
        check(got[0], want[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("num_columns", [96, 1000, 14336])
def test_activations(dtype, kind, num_columns):
    for num_rows in ROWS:
        gate_up = 3 * random(num_rows, 2 * num_columns, dtype=dtype)
        check(activation.act_mul(gate_up, kind), activation_reference.act_mul(gate_up, kind))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(32, 8, 128, 128), (28, 4, 128, 128), (32, 32, 96, 96), (8, 2, 80, 20),
                                   (16, 8, 256, 256)], ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotary_and_cache(dtype, heads, has_norm):
    num_heads, num_kv_heads, head_dim, rotary_dim = heads
    lens = [1] * 5 + [70, 3]
    starts = [17, 0, 63, 64, 100, 0, 10]
    tables = [list(range(3 * row, 3 * row + 3)) for row in torch.randperm(len(lens)).tolist()]
    meta = AttentionMetadata.from_rows(starts, lens, tables, num_decodes=5, tokens_per_block=64, device="cuda")
    meta.slot_mapping[1] = -1  # as a row that pads a graph's batch
    num_tokens = sum(lens)
    qkv = random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    angles = 100 * torch.rand(num_tokens, rotary_dim // 2, device="cuda")
    norms = {f"{name}_norm": torch.rand(head_dim, device="cuda") + 0.5 for name in "qk"} if has_norm else {}
    results = []
    for op in (rotary, rotary_reference):
        pool = torch.zeros(3 * len(lens), 2, 2, num_kv_heads, 64, head_dim, dtype=dtype, device="cuda")
        kept = meta
        if op is rotary_reference:  # which knows no padding
            keep = meta.slot_mapping >= 0
            kept = AttentionMetadata.decodes(meta.query_start, meta.seq_lens, meta.block_tables,
                                             meta.slot_mapping[keep])
            cos_sin = op.prepare_angles(angles.cos()[keep], angles.sin()[keep])
            q, kv = op.rotate_and_store(qkv[keep].clone(), cos_sin, pool, 1, kept, num_heads=num_heads, **norms)
            results.append((q, kv, pool))
            continue
        q, kv = op.rotate_and_store(qkv.clone(), op.prepare_angles(angles.cos(), angles.sin()), pool, 1, kept,
                                    num_heads=num_heads, **norms)
        results.append((q[meta.slot_mapping >= 0], kv[meta.slot_mapping >= 0], pool))
    for got, want in zip(*results, strict=True):
        check(got, want)


def test_a_graphs_buffers():
    """Also with rows that pad, tables longer than one pass of a program, and nothing written past a row's blocks."""
    num_slots, width, size = 40, 700, 64
    tables = torch.randint(1, 5000, (num_slots, width), dtype=torch.int32, device="cuda")
    last_tokens = torch.randint(0, 1000, (num_slots,), device="cuda")
    for num_rows in (1, 7, 32):
        slots = torch.randperm(num_slots, device="cuda")[:num_rows]
        positions = torch.randint(0, width * size, (num_rows,), dtype=torch.int32, device="cuda")
        ours, reference = (DecodeBuffers.empty(32, width, "cuda") for _ in range(2))
        for buffers in (ours, reference):
            buffers.seq_lens.fill_(9)
            buffers.slot_mapping.fill_(9)
        for op, buffers in ((decode_rows, ours), (decode_rows_reference, reference)):
            op.fill(buffers, slots, positions, last_tokens, tables, num_padded=32, tokens_per_block=size)
        for name in ("token_ids", "positions", "seq_lens", "slot_mapping"):
            assert getattr(ours, name).equal(getattr(reference, name)), name
        num_blocks = positions // size + 1
        is_needed = torch.arange(width, device="cuda")[None, :] < num_blocks[:, None]
        assert ours.block_tables[:num_rows].where(is_needed, 0).equal(
            reference.block_tables[:num_rows].where(is_needed, 0))
        assert not ours.block_tables[:num_rows].where(is_needed, 0)[~is_needed].any()
        assert not ours.block_tables[num_rows:].any()
