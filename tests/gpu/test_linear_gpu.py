"""Products on a real GPU: bfloat16, the shapes of public models, every kernel that tuning may choose, graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from pelton.kernels.activation.reference import act_mul
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import ROW_BUCKETS, Choice, Shape, bucket_of, default_choice
from pelton.kernels.linear.cluster import ClusterConfig
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.tuning import Product, candidates, tune
from pelton.kernels.linear.workspace import workspace

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-3}
QKV = Product(Shape(6144, 4096), has_norm=True, has_bias=True)
OUT = Product(Shape(4096, 4096), has_residual=True)
GATE_UP = Product(Shape(28672, 4096, is_gated=True), "silu", has_norm=True)
DOWN = Product(Shape(3584, 18944), has_residual=True)
ODD = Product(Shape(1000, 1544), has_norm=True, has_bias=True, has_residual=True)
ODD_GATED = Product(Shape(2 * 330, 904, is_gated=True), "gelu_tanh", has_norm=True, has_bias=True)
HEAD = Product(Shape(32064, 3072), is_logits=True)
PRODUCTS = {"qkv": QKV, "o": OUT, "gate-up": GATE_UP, "down": DOWN, "odd": ODD, "odd-gated": ODD_GATED, "head": HEAD}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Problem:
    """Fresh random inputs of one product."""

    def __init__(self, product: Product, num_rows: int, dtype: torch.dtype):
        n, k = product.shape.n, product.shape.k
        options = {"dtype": dtype, "device": "cuda"}
        self.product = product
        self.x = torch.randn(num_rows, k, **options)
        self.weight = torch.randn(n, k, **options) / k**0.5
        self.bias = torch.randn(n, **options) if product.has_bias else None
        self.norm = Norm(torch.rand(k, **options) + 0.5, 1e-5) if product.has_norm else None
        if product.has_norm:  # which rows of any size come out of alike
            self.x *= 2.0 ** torch.randint(-4, 5, (num_rows, 1), device="cuda")
        num_outputs = n // 2 if product.shape.is_gated else n
        self.residual = torch.randn(num_rows, num_outputs, **options) if product.has_residual else None

    def run(self, choice: Choice) -> torch.Tensor:
        return linear.run(choice, self.x, linear.prepare_weight(self.weight), self.bias, norm=self.norm,
                          act=self.product.activation,
                          residual=None if self.residual is None else self.residual.clone(),
                          out_dtype=torch.float32 if self.product.is_logits else None)

    def want(self) -> torch.Tensor:
        x = self.x.double()
        if self.norm is not None:
            x = torch.nn.functional.rms_norm(x, x.shape[1:], self.norm.weight.double(), self.norm.eps)
        out = x @ self.weight.double().T
        if self.bias is not None:
            out += self.bias
        if self.product.activation:
            out = act_mul(out, self.product.activation).double()
        return out if self.residual is None else out + self.residual

    def error(self, choice: Choice) -> float:
        got, want = self.run(choice), self.want()
        assert got.shape == want.shape
        assert not workspace(got.device).arrivals.any()
        return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", [1, 2, 8, 13, 20, 33, 64, 100, 150, 200, 300])
def test_default_choice(name, dtype, num_rows):
    product = PRODUCTS[name]
    problem = Problem(product, num_rows, dtype)
    bucket = bucket_of(num_rows) or ROW_BUCKETS[-1]
    choice = default_choice(product.shape, bucket, gpu_features(problem.x.device).capability)
    assert problem.error(choice) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("num_rows", [1, 7, 16, 32, 50, 128, 200])
def test_every_candidate(name, num_rows):
    product = PRODUCTS[name]
    problem = Problem(product, num_rows, torch.bfloat16)
    bucket = bucket_of(num_rows)
    capability = gpu_features(problem.x.device).capability
    for choice in candidates(product.shape, bucket, capability, has_norm=product.has_norm):
        assert problem.error(choice) <= TOLERANCE[torch.bfloat16], choice


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("x_rows", [8, 16, 32, 64])
def test_cluster_with_the_norm(x_rows, dtype):
    """Every number of input rows, whole and not, in one and more blocks; K in one and in two, and no whole steps."""
    if gpu_features(torch.device("cuda", 0)).capability != 90:
        pytest.skip("needs Hopper")
    for product, num_splits in ((ODD, 1), (ODD, 2), (replace(ODD_GATED, shape=Shape(656, 904, is_gated=True)), 1)):
        for num_rows in (x_rows, x_rows - 3, 2 * x_rows + 1):
            problem = Problem(product, num_rows, dtype)
            choice = Choice(ClusterConfig(x_rows, 48, 4, num_splits, x_stages=3))
            assert problem.error(choice) <= TOLERANCE[dtype], (product, num_rows, choice)
            assert problem.run(choice).equal(problem.run(choice))


def test_cluster_leaves_a_norm_of_another_type_to_its_own_kernel():
    problem = Problem(QKV, 40, torch.bfloat16)
    problem.norm = Norm(problem.norm.weight.float(), 1e-5)
    assert problem.error(Choice(ClusterConfig(64, 96, 4))) <= TOLERANCE[torch.bfloat16]


def test_same_bits_every_time_and_in_a_graph():
    """Who arrives last differs from run to run; what comes out does not. Many products in a row share a workspace."""
    problem = Problem(replace(OUT, has_residual=False), 8, torch.bfloat16)
    choice = default_choice(OUT.shape, 8, gpu_features(problem.x.device).capability)
    want = problem.run(choice)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [problem.run(choice) for _ in range(20)]
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    assert all(out.equal(want) for out in outs)


def test_chain_waits_for_what_it_reads():
    """Each product reads what the one before wrote, though it starts before that one ends."""
    weights = [linear.prepare_weight(torch.randn(2048, 2048, dtype=torch.bfloat16, device="cuda") / 45)
               for _ in range(40)]
    start = torch.randn(4, 2048, dtype=torch.bfloat16, device="cuda")
    for rows in (1, 4):
        x = start[:rows]
        want = x
        for weight in weights:
            want = torch.nn.functional.linear(want, weight.data)
        linear.linear(x, weights[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = x
            for weight in weights:
                out = linear.linear(out, weight)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        assert float((out.double() - want.double()).norm() / want.double().norm()) <= 5e-2


def test_tune():
    products = [Product(Shape(512, 256), has_norm=True), Product(Shape(1024, 256, is_gated=True), "silu")]
    seen = []
    measured = tune(products, (1, 16), device=torch.device("cuda", torch.cuda.current_device()), read_tb_per_s=4.58,
                    matrix_tflop_per_s=790, on_result=seen.append)
    assert [(m.shape, m.num_rows) for m in measured] == [(p.shape, rows) for p in products for rows in (1, 16)]
    assert seen == measured
    for m in measured:
        assert m.us > 0
        assert 0 < m.share_of_limit < 1.5
        x = torch.randn(m.num_rows, m.k, dtype=torch.bfloat16, device="cuda")
        weight = torch.randn(m.n, m.k, dtype=torch.bfloat16, device="cuda")
        assert linear.run(m.choice, x, linear.prepare_weight(weight)).isfinite().all() or m.is_gated
