"""Linear, norm, activation and rotary ops on the CPU against their references, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch

from pelton.kernels import cpu_features
from pelton.kernels.activation import cpu as activation_cpu
from pelton.kernels.activation import reference as activation_reference
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.linear import cpu as linear_cpu
from pelton.kernels.linear import reference as linear_reference
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.norm import cpu as norm_cpu
from pelton.kernels.norm import reference as norm_reference
from pelton.kernels.registry import OPS, load_ops
from pelton.kernels.rotary import cpu as rotary_cpu
from pelton.kernels.rotary import reference as rotary_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def check(got: torch.Tensor, want: torch.Tensor, *, num_roundings: int = 1) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert error <= TOLERANCE[got.dtype] * num_roundings, error


@DTYPES
@pytest.mark.parametrize("num_rows", [1, 3, 8, 33])
@pytest.mark.parametrize("shape", [(64, 48), (7, 33), (200, 256)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(dtype, num_rows, shape, has_bias):
    x, weight = torch.randn(num_rows, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if has_bias else None
    want = linear_reference.linear(x, linear_reference.prepare_weight(weight), bias)
    check(linear_cpu.linear(x, linear_cpu.prepare_weight(weight), bias), want)


@DTYPES
@pytest.mark.parametrize("act", [None, "silu"])
@pytest.mark.parametrize("has_norm", [False, True])
def test_fused_linear(dtype, act, has_norm):
    """Norm, bias, activation and residual in one call, against float64; the inputs but the residual survive."""
    x, weight, bias = torch.randn(5, 48).to(dtype), torch.randn(64, 48).to(dtype) / 7, torch.randn(64).to(dtype)
    scale, residual = torch.randn(48).to(dtype), torch.randn(5, 32 if act else 64).to(dtype)
    want = x.double()
    if has_norm:
        want = torch.nn.functional.rms_norm(want, (48,), scale.double(), 1e-5)
    want = want @ weight.double().T + bias.double()
    if act:
        want = torch.nn.functional.silu(want[:, :32]) * want[:, 32:]
    want = want + residual.double()
    for linear, norm in ((linear_reference, norm_reference), (linear_cpu, norm_cpu)):
        prologue = Norm(norm.prepare_weight(scale, 0.0), 1e-5) if has_norm else None
        before = x.clone()
        got = linear.linear(x, linear.prepare_weight(weight), bias, norm=prologue, act=act, residual=residual.clone())
        check(got, want.to(dtype), num_roundings=4)
        assert x.equal(before)
        got = linear.linear(x, linear.prepare_weight(weight), out_dtype=torch.float32)
        assert got.dtype is torch.float32


def test_linear_without_packing(monkeypatch):
    monkeypatch.setattr(linear_cpu, "can_pack", lambda: False)
    x, weight, bias = torch.randn(5, 32).half(), torch.randn(16, 32).half(), torch.randn(16).half()
    packed = linear_cpu.prepare_weight(weight)
    assert packed.dtype is torch.float32
    check(linear_cpu.linear(x, packed, bias), linear_reference.linear(x, weight, bias))


def test_packed_weight_outlives_the_original():
    weight = torch.randn(32, 16)
    x = torch.randn(4, 16)
    want = x @ weight.T
    packed = linear_cpu.prepare_weight(weight)
    weight.zero_()
    check(linear_cpu.linear(x, packed), want)


def test_packed_bytes():
    if not cpu_features.can_pack():
        pytest.skip("no oneDNN in this torch")
    assert linear_cpu.prepare_weight(torch.zeros(32, 16, dtype=torch.float16)).num_bytes == 32 * 16 * 4


@DTYPES
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(dtype, offset):
    x, residual = torch.randn(9, 80).to(dtype) * 3, torch.randn(9, 80).to(dtype)
    weight = (torch.randn(80) * 0.2).to(dtype)
    for module in (norm_reference, norm_cpu):
        prepared = module.prepare_weight(weight, offset)
        want = torch.nn.functional.rms_norm(x.double(), (80,), weight.double() + offset, 1e-5)
        check(module.rms_norm(x, prepared, 1e-5), want.to(dtype))
        total = x + residual
        want = torch.nn.functional.rms_norm(total.double(), (80,), weight.double() + offset, 1e-5)
        normed, got_total = module.add_rms_norm(x.clone(), residual, prepared, 1e-5)
        check(normed, want.to(dtype))
        assert got_total.equal(total)


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activation(dtype, kind):
    gate_up = torch.randn(6, 2 * 40).to(dtype) * 3
    check(activation_cpu.act_mul(gate_up.clone(), kind), activation_reference.act_mul(gate_up, kind))


def test_activation_gates_the_first_half():
    gate_up = torch.tensor([[1.0, 2.0, 10.0, 100.0]])
    want = torch.tensor([[torch.sigmoid(torch.tensor(1.0)) * 10, 2 * torch.sigmoid(torch.tensor(2.0)) * 100]])
    for module in (activation_cpu, activation_reference):
        torch.testing.assert_close(module.act_mul(gate_up.clone(), "silu"), want)


@DTYPES
@pytest.mark.parametrize("rotary_dim", [32, 24, 2])
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotary(dtype, rotary_dim, has_norm):
    num_heads, num_kv_heads, head_dim = 6, 2, 32
    meta = AttentionMetadata.from_rows([20, 0], [1, 18], [[7, 3], [2, 9]], num_decodes=1, tokens_per_block=16)
    qkv = torch.randn(19, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    angles = torch.randn(19, rotary_dim // 2) * 10
    norms = {name: torch.randn(head_dim).to(dtype) for name in ("q_norm", "k_norm")} if has_norm else {}
    results = []
    for rotary, norm in ((rotary_reference, norm_reference), (rotary_cpu, norm_cpu)):
        pool = torch.full((10, 3, 2, num_kv_heads, 16, head_dim), 7.0, dtype=dtype)
        prepared = {name: norm.prepare_weight(weight, 0.0) for name, weight in norms.items()}
        q, kv = rotary.rotate_and_store(qkv.clone(), rotary.prepare_angles(angles.cos(), angles.sin()), pool, 1, meta,
                                        num_heads=num_heads, eps=1e-5, **prepared)
        results.append((q, kv, pool))
    for want, got in zip(*results, strict=True):
        check(got, want)
    q, kv, pool = results[1]
    assert q.shape == (19, num_heads, head_dim)
    assert kv.shape == (19, 2, num_kv_heads, head_dim)
    stored = pool[:, 1].permute(0, 3, 1, 2, 4).reshape(160, 2, num_kv_heads, head_dim)[meta.slot_mapping]
    assert stored.equal(kv)
    untouched = torch.ones(160, dtype=torch.bool)
    untouched[meta.slot_mapping] = False
    assert (pool[:, 1].permute(0, 3, 1, 2, 4).reshape(160, -1)[untouched] == 7).all()
    assert (pool[:, [0, 2]] == 7).all()
    values = qkv.view(19, -1, head_dim)[:, -num_kv_heads:]
    assert kv[:, 1].equal(values)


def test_rotation_by_hand():
    """One head of four dimensions, a quarter turn of the first pair and none of the second."""
    meta = AttentionMetadata.from_rows([0], [1], [[0]], num_decodes=1, tokens_per_block=16)
    qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0] * 3])
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for module in (rotary_reference, rotary_cpu):
        pool = torch.zeros(1, 1, 2, 1, 16, 4)
        q, kv = module.rotate_and_store(qkv.clone(), module.prepare_angles(cos, sin), pool, 0, meta, num_heads=1)
        assert q.tolist() == [[[-3.0, 2.0, 1.0, 4.0]]]
        assert kv.tolist() == [[[[-3.0, 2.0, 1.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]]]


@pytest.mark.parametrize("implementation", ["reference", "cpu", "cuda"])
def test_every_implementation_has_every_op(implementation):
    ops = load_ops(implementation)
    assert all(getattr(ops, op) is not None for op in OPS)
    assert callable(ops.attention.plan)
    assert callable(ops.attention.rotate_and_attend)
    assert callable(ops.linear.prepare_weight)


def test_bfloat16_is_multiplied_as_float32_where_the_cpu_cannot(monkeypatch):
    monkeypatch.setattr(cpu_features, "can_pack", lambda: False)
    cpu_features.native_dtype.cache_clear()
    try:
        assert cpu_features.native_dtype(torch.bfloat16) is torch.float32
        assert cpu_features.native_dtype(torch.float32) is torch.float32
    finally:
        cpu_features.native_dtype.cache_clear()
