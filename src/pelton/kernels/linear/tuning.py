"""Measures which kernel suits each product of a model, on the GPU that is here.

Every candidate is timed as the model will run it, with its norm, activation and residual, over weights that do not fit
the GPU's cache, one after the other in a CUDA graph. So the time of a kernel that fuses less includes the kernels that
do the rest, and what dependent launch gains or loses is in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from pelton.config import ModelConfig
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear import tiles
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import (
    LIBRARY,
    MAX_FUSED_NORM_ROWS,
    ROW_BUCKETS,
    Choice,
    Measurement,
    Shape,
)
from pelton.kernels.linear.cluster import MAX_NORM_ROWS, ClusterConfig, fitting, is_available
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.stream import StreamConfig
from pelton.kernels.linear.tiles import TileConfig
from pelton.kernels.linear.vector import VectorConfig

_CYCLE_BYTES = 256 << 20
"""Weights that a measurement goes through before it returns to the first: several times any GPU's cache."""
_NUM_REPLAYS = 7
_NUM_COMPILERS = 8


@dataclass(frozen=True)
class Product:
    """A product as a model uses it."""

    shape: Shape
    activation: str | None = None
    has_norm: bool = False
    has_bias: bool = False
    has_residual: bool = False
    is_logits: bool = False
    """Whether the result is float32."""


def model_products(config: ModelConfig, *, tp_size: int = 1) -> list[Product]:
    """The products of one decoder layer and the head, as one of `tp_size` ranks runs them."""
    is_fused = tp_size == 1 and not config.sandwich_norm
    hidden, inner = config.hidden_size, config.intermediate_size // tp_size
    kv_size = max(config.kv_size // tp_size, config.head_dim)
    q_size = config.q_size // tp_size
    products = [
        Product(Shape(q_size + 2 * kv_size, hidden), has_norm=is_fused, has_bias=config.attention_bias),
        Product(Shape(hidden, q_size), has_residual=is_fused, has_bias=config.output_bias),
        Product(Shape(2 * inner, hidden, is_gated=True), config.activation, has_norm=is_fused,
                has_bias=config.mlp_bias),
        Product(Shape(hidden, inner), has_residual=is_fused, has_bias=config.mlp_bias),
        Product(Shape(config.vocab_size // tp_size, hidden), is_logits=True),
    ]
    return list({product.shape: product for product in products}.values())


def candidates(shape: Shape, bucket: int, capability: int, *, has_norm: bool = True) -> list[Choice]:
    """What is worth measuring: few, so that a model is done in seconds. Others tried never won on an H200."""
    configs: list[VectorConfig | StreamConfig | TileConfig | ClusterConfig] = []
    if bucket == 1:
        configs += [VectorConfig(*cut) for cut in ((4, 4096, 4), (8, 4096, 8), (4, 2048, 4), (16, 2048, 8),
                                                   (16, 512, 4))]
    elif capability == 90:
        configs += [StreamConfig(*cut[:3], num_splits=cut[3]) for cut in _stream_cuts(shape, bucket)]
        configs += _cluster_configs(shape, bucket)
    elif bucket <= tiles.MAX_ROWS:
        splits = (1,) if shape.n > 16384 else (2, 4)
        configs += [TileConfig(block_n, 64, num_splits) for num_splits in splits
                    for block_n in ((32,) if shape.is_gated else (32, 64))]
    choices = [Choice(config, fuses_norm=bucket <= MAX_FUSED_NORM_ROWS) for config in configs]
    if has_norm and bucket > MAX_FUSED_NORM_ROWS:
        choices += [Choice(config) for config in configs
                    if isinstance(config, ClusterConfig) and config.x_rows <= MAX_NORM_ROWS]
    return [*choices, LIBRARY]


def _cluster_configs(shape: Shape, bucket: int) -> list[ClusterConfig]:
    """A block or two for each multiprocessor, and K split where the weight has few rows."""
    if bucket < 32 or bucket == 192 or not is_available():
        return []
    x_rows = max(64, bucket)
    if shape.is_gated:
        found = [fitting(shape.n, x_rows, blocks_per_sm=num, max_stages=6) for num in (1, 2)]
        found.append(fitting(shape.n, x_rows, blocks_per_sm=2, max_stages=4, x_stages=2 if bucket == 128 else 0))
    elif shape.n > 16384:
        found = [ClusterConfig(x_rows, 128, {64: 4, 128: 3, 256: 4}[x_rows])]
    else:
        found = [fitting(shape.n, x_rows, num_splits=splits, blocks_per_sm=num, max_stages=12)
                 for splits, num in ((1, 1), (2, 1), (2, 2))]
        if bucket <= 64:
            found += [fitting(shape.n, x_rows, num_splits=2, max_stages=num) for num in (6, 8)]
        elif bucket == 128:
            found.append(fitting(shape.n, x_rows, num_splits=2, max_stages=10, x_stages=4))
    return list(dict.fromkeys(config for config in found if config is not None))


def _stream_cuts(shape: Shape, bucket: int) -> tuple[tuple[int, int, int, int], ...]:
    """(halves, block_k, num_stages, num_splits)."""
    if bucket > 128:
        return ()
    if shape.is_gated:
        if bucket <= 8:
            # By itself no faster than (2, 128, 4, 0), but it leaves room for the next product's first copies.
            return ((2, 128, 3, 1),)
        if bucket <= 16:
            return (2, 128, 4, 0), (2, 128, 3, 1)
        return ((2, 128, 3, 1), (2, 128, 2, 1)) if bucket <= 64 else ((2, 64, 3, 1),)
    if shape.n > 16384:
        return ((1, 128, 3, 1), (2, 128, 2, 1)) if bucket <= 64 else ((2, 64, 3, 1),)
    if bucket <= 16:
        return (1, 256, 3, 4), (1, 256, 3, 2), (1, 128, 4, 4), (2, 128, 4, 0)
    if bucket <= 32:
        return (1, 256, 2, 2), (1, 256, 3, 2), (1, 128, 4, 2)
    return ((1, 256, 3, 2), (1, 128, 4, 2), (1, 128, 6, 1)) if bucket <= 64 else ()


def tune(products: Sequence[Product], buckets: Iterable[int] = ROW_BUCKETS, *, device: torch.device,
         dtype: torch.dtype = torch.bfloat16, read_tb_per_s: float, matrix_tflop_per_s: float,
         on_result: Callable[[Measurement], None] | None = None) -> list[Measurement]:
    """The best choice of each product and bucket.

    Args:
        products: of distinct shapes.
        buckets: of ROW_BUCKETS.
        device: the GPU; 1.5 GB or the largest weight must be free on it.
        dtype: of weights and inputs.
        read_tb_per_s, matrix_tflop_per_s: the GPU's limits, for the share reached.
        on_result: called with every measurement that won, as it is made.

    Returns:
        One measurement per product and bucket, in that order.
    """
    bench = _Bench(products, device, dtype)
    capability = gpu_features(device).capability
    results = []
    for product in products:
        for bucket in buckets:
            choices = candidates(product.shape, bucket, capability, has_norm=product.has_norm)
            seconds, choice = min(bench.time(product, bucket, choices), key=lambda timed: timed[0])
            n, k = product.shape.n, product.shape.k
            floor = max(n * k * dtype.itemsize / read_tb_per_s, 2 * bucket * n * k / matrix_tflop_per_s) / 1e12
            results.append(Measurement(
                n=n, k=k, is_gated=product.shape.is_gated, num_rows=bucket, kernel=choice.kernel,
                config=asdict(choice.config) if choice.config is not None else {}, fuses_norm=choice.fuses_norm,
                us=seconds * 1e6, tb_per_s=n * k * dtype.itemsize / seconds / 1e12,
                tflop_per_s=2 * bucket * n * k / seconds / 1e12, share_of_limit=floor / seconds))
            if on_result is not None:
                on_result(results[-1])
    return results


class _Bench:
    """Random weights, larger than the cache, cut to the shape that is measured."""

    def __init__(self, products: Sequence[Product], device: torch.device, dtype: torch.dtype):
        largest = max(product.shape.n * product.shape.k for product in products)
        self._pool = torch.empty(max(largest, _CYCLE_BYTES // dtype.itemsize), dtype=dtype, device=device)
        self._pool.normal_(std=0.02)
        self._stream = torch.cuda.Stream(device)
        self._device, self._dtype = device, dtype

    def time(self, product: Product, num_rows: int, choices: Sequence[Choice]) -> Iterator[tuple[float, Choice]]:
        """(seconds per product, choice) of each choice that can run."""
        calls = {choice: list(self._calls(product, num_rows, choice)) for choice in choices}
        with ThreadPoolExecutor(_NUM_COMPILERS, initializer=self._enter_device) as compilers:
            is_able = dict(zip(choices, compilers.map(lambda choice: self._can_run(calls[choice][0]), choices),
                               strict=True))
        for choice in choices:
            if is_able[choice]:
                yield self._replay(calls[choice]) / len(calls[choice]), choice

    def _calls(self, product: Product, num_rows: int, choice: Choice) -> Iterator[Callable[[], Tensor]]:
        n, k = product.shape.n, product.shape.k
        num_outputs = n // 2 if product.shape.is_gated else n
        options = {"dtype": self._dtype, "device": self._device}
        x, bias = torch.randn(num_rows, k, **options), torch.randn(n, **options) if product.has_bias else None
        norm = Norm(torch.ones(k, **options), 1e-5) if product.has_norm else None
        residual = torch.randn(num_rows, num_outputs, **options) if product.has_residual else None
        out_dtype = torch.float32 if product.is_logits else None
        for index in range(max(1, min(8, self._pool.numel() // (n * k)))):
            weight = linear.prepare_weight(self._pool[index * n * k : (index + 1) * n * k].view(n, k))
            yield lambda weight=weight: linear.run(choice, x, weight, bias, norm=norm, act=product.activation,
                                                   residual=residual, out_dtype=out_dtype)

    def _enter_device(self) -> None:
        """Makes the device's context the calling thread's, as the first allocation there does."""
        torch.cuda.set_device(self._device)
        torch.zeros(1, device=self._device)

    def _can_run(self, call: Callable[[], Tensor]) -> bool:
        """Compiles, and finds out whether the GPU has the registers and shared memory for it."""
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                call()
        except Exception as error:
            if "out of resource" in str(error):
                return False
            raise
        return True

    def _replay(self, calls: Sequence[Callable[[], Tensor]]) -> float:
        """Median seconds of all calls, replayed as one graph."""
        graph, times = torch.cuda.CUDAGraph(), []
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            with torch.cuda.graph(graph, stream=self._stream):
                for call in calls:
                    call()
            graph.replay()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(_NUM_REPLAYS + 1)]
            for mark in marks:
                mark.record()
                if mark is not marks[-1]:
                    graph.replay()
            marks[-1].synchronize()
            times = [start.elapsed_time(stop) / 1e3 for start, stop in itertools.pairwise(marks)]
        seconds = median(times)
        assert math.isfinite(seconds)
        return seconds
