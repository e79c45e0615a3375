"""GPU kernels of the linear, norm and activation ops against their references, interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from helpers.triton_interpret import DEVICE

pytest.importorskip("triton")

from pelton.kernels.activation import reference as activation_reference
from pelton.kernels.activation import triton as activation
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import (
    LIBRARY,
    ROW_BUCKETS,
    Choice,
    Choices,
    Measurement,
    Shape,
    bucket_of,
    default_choice,
)
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.stream import StreamConfig
from pelton.kernels.linear.tiles import TileConfig
from pelton.kernels.linear.tuning import candidates
from pelton.kernels.linear.vector import VectorConfig
from pelton.kernels.linear.workspace import workspace
from pelton.kernels.norm import triton as norm

# The interpreter's tl.dot does not take bfloat16; tests/gpu runs it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CHOICES = {
    "vector": Choice(VectorConfig(4, 64, 1)),
    "vector wide": Choice(VectorConfig(8, 128, 4)),
    "tiles": Choice(TileConfig(16, 32, 1)),
    "tiles split": Choice(TileConfig(16, 32, 3)),
    "tiles norm apart": Choice(TileConfig(32, 16, 2), fuses_norm=False),
    "library": LIBRARY,
}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    assert not got.isnan().any()
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("act", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(72, 104), (30, 64), (6, 200)], ids=str)
def test_product_with_all_around_it(name, dtype, act, shape):
    n, k = shape
    for num_rows in [1] if name.startswith("vector") else [1, 5, 20]:
        x, weight = torch.randn(num_rows, k, device=DEVICE), torch.randn(n, k, device=DEVICE) / k**0.5
        bias, scale = torch.randn(n, device=DEVICE), torch.rand(k, device=DEVICE) + 0.5
        residual = torch.randn(num_rows, n // 2 if act else n, device=DEVICE)
        x, weight, bias, scale, residual = (t.to(dtype) for t in (x, weight, bias, scale, residual))
        want = torch.nn.functional.rms_norm(x.double(), (k,), scale.double(), 1e-5) @ weight.double().T + bias.double()
        if act:
            want = activation_reference._activate(want[:, : n // 2], act) * want[:, n // 2 :]
        want += residual.double()
        before = x.clone()
        got = linear.run(CHOICES[name], x, linear.prepare_weight(weight), bias, norm=Norm(scale, 1e-5), act=act,
                         residual=residual)
        # Of the terms, which are about 1: the sum of three of them may nearly vanish.
        assert error(got, want) * float(want.norm()) <= TOLERANCE[dtype] * max(float(want.norm()), want.numel() ** 0.5)
        assert x.equal(before)
        assert not workspace(x.device).arrivals.any()


@pytest.mark.parametrize("name", CHOICES)
def test_plain_product_in_another_type(name):
    x, weight = torch.randn(1, 96, device=DEVICE).half(), torch.randn(40, 96, device=DEVICE).half()
    got = linear.run(CHOICES[name], x, linear.prepare_weight(weight), out_dtype=torch.float32)
    assert got.dtype is torch.float32
    assert error(got, x.double() @ weight.double().T) <= 1e-3


def test_strided_input_and_no_rows():
    weight = torch.randn(40, 96, device=DEVICE)
    x = torch.randn(3, 200, device=DEVICE)[:, :96]
    assert error(linear.linear(x, linear.prepare_weight(weight)), x.double() @ weight.double().T) <= 1e-6
    assert linear.linear(x[:0], linear.prepare_weight(weight)).shape == (0, 40)


def test_stream_gives_way_where_it_cannot_run():
    """Not Hopper, or rows that the copy engine cannot address: another kernel computes the same."""
    x, weight = torch.randn(5, 90, device=DEVICE), torch.randn(40, 90, device=DEVICE)
    got = linear.run(Choice(StreamConfig()), x, linear.prepare_weight(weight))
    assert error(got, x.double() @ weight.double().T) <= 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 80, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(dtype, width, offset):
    x, residual = torch.randn(9, width, device=DEVICE).to(dtype) * 3, torch.randn(9, width, device=DEVICE).to(dtype)
    weight = (torch.randn(width, device=DEVICE) * 0.2).to(dtype)
    prepared = norm.prepare_weight(weight, offset)
    scale = weight.double() + offset
    want = torch.nn.functional.rms_norm(x.double(), (width,), scale, 1e-5)
    assert error(norm.rms_norm(x, prepared, 1e-5), want) <= TOLERANCE[dtype]
    wide = torch.randn(9, 2 * width, device=DEVICE).to(dtype)
    want = torch.nn.functional.rms_norm(wide[:, :width].double(), (width,), scale, 1e-5)
    assert error(norm.rms_norm(wide[:, :width], prepared, 1e-5), want) <= TOLERANCE[dtype]
    total = x + residual
    want = torch.nn.functional.rms_norm(total.double(), (width,), scale, 1e-5)
    normed, got_total = norm.add_rms_norm(x, residual.clone(), prepared, 1e-5)
    assert error(normed, want) <= TOLERANCE[dtype]
    # The interpreter cuts bfloat16 off where the GPU rounds.
    assert error(got_total, total.double()) <= (TOLERANCE[dtype] if DEVICE == "cpu" else 0)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("width", [40, 1500])
def test_activation(kind, width):
    gate_up = torch.randn(6, 2 * width, device=DEVICE) * 3
    want = activation_reference.act_mul(gate_up.double(), kind)
    assert error(activation.act_mul(gate_up, kind), want.double()) <= 1e-6


def test_buckets():
    assert [bucket_of(rows) for rows in (1, 2, 8, 9, 64, 65, 129, 193, 257)] == [1, 8, 8, 16, 64, 128, 192, 256, None]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100])
@pytest.mark.parametrize("bucket", ROW_BUCKETS)
def test_choices_suit_the_gpu(capability, bucket):
    """Gated products need kernels with both halves, dependent ones Hopper; the default is found for every shape."""
    for shape in (Shape(6144, 4096), Shape(28672, 4096, is_gated=True), Shape(128256, 4096), Shape(64, 64)):
        chosen = [default_choice(shape, bucket, capability), *candidates(shape, bucket, capability)]
        for choice in chosen:
            if isinstance(choice.config, StreamConfig):
                assert capability == 90
                assert choice.config.halves == 2 or not shape.is_gated
            assert not isinstance(choice.config, VectorConfig) or bucket == 1
        assert LIBRARY in chosen


def test_measured_choice_wins_and_survives_json():
    measured = Measurement(n=64, k=32, is_gated=False, num_rows=8, kernel="tiles", config={"block_n": 16},
                           fuses_norm=False, us=1.0, tb_per_s=1.0, tflop_per_s=1.0, share_of_limit=0.5)
    again = Measurement(**measured.to_json())
    assert again == measured
    choices = Choices([again])
    assert choices.choose(Shape(64, 32), 5, 90) == Choice(TileConfig(block_n=16), fuses_norm=False)
    assert choices.choose(Shape(64, 32), 1, 90) == default_choice(Shape(64, 32), 1, 90)
    assert choices.choose(Shape(64, 32), 1000, 90) == LIBRARY
