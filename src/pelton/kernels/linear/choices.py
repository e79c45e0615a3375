"""Which kernel runs a product: a table of measured choices, and what to do without one.

A choice is made per weight shape and bucket of rows; `tuning.py` measures them, `build` stores them. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pelton.kernels.linear.cluster import MAX_NORM_ROWS, NUM_MULTIPROCESSORS, ClusterConfig, fitting
from pelton.kernels.linear.stream import StreamConfig
from pelton.kernels.linear.tiles import TileConfig
from pelton.kernels.linear.vector import VectorConfig

ROW_BUCKETS = (1, 8, 16, 32, 64, 128, 192, 256)
"""A product of M rows runs as chosen for the first bucket that holds M; above the last the library takes it."""
_CONFIGS = {"vector": VectorConfig, "stream": StreamConfig, "tiles": TileConfig, "cluster": ClusterConfig}
MAX_FUSED_NORM_ROWS = 16
"""Up to here every product's programs norm the input for themselves; beyond, only those of cluster.cu may, whose tensor
cores take the input from registers, else a kernel before the product does."""


@dataclass(frozen=True)
class Shape:
    """A weight [n, k]; of a gated product the first half of the rows are gates."""

    n: int
    k: int
    is_gated: bool = False


@dataclass(frozen=True)
class Choice:
    """A kernel and how it is cut. The library's has no config."""

    config: VectorConfig | StreamConfig | TileConfig | ClusterConfig | None = None
    fuses_norm: bool = True
    """Whether the product takes its norm with it; else the norm is a kernel of its own before it."""

    @property
    def kernel(self) -> str:
        return next((name for name, cls in _CONFIGS.items() if isinstance(self.config, cls)), "library")


LIBRARY = Choice(None, fuses_norm=False)


@dataclass(frozen=True)
class Measurement:
    """One line of tuning.json."""

    n: int
    k: int
    is_gated: bool
    num_rows: int
    """The bucket."""
    kernel: str
    config: dict[str, int]
    fuses_norm: bool
    us: float
    tb_per_s: float
    """Bytes of weight over time."""
    tflop_per_s: float
    share_of_limit: float
    """The shortest time that bandwidth and arithmetic allow, over the time taken."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def shape(self) -> Shape:
        return Shape(self.n, self.k, self.is_gated)

    @property
    def choice(self) -> Choice:
        config = _CONFIGS[self.kernel](**self.config) if self.kernel in _CONFIGS else None
        return Choice(config, self.fuses_norm)


def bucket_of(num_rows: int) -> int | None:
    """The first bucket that holds so many rows; None above the last."""
    return next((bucket for bucket in ROW_BUCKETS if num_rows <= bucket), None)


def default_choice(shape: Shape, bucket: int, capability: int) -> Choice:
    """What measured best on an H200 (compute capability 9.0) for the shapes of Llama-3.1-8B, and what should do
    anywhere."""
    if bucket == 1:
        return Choice(_vector_config(shape))
    if capability == 90:
        config = _cluster_config(shape, bucket) or _stream_config(shape, bucket)
        if isinstance(config, ClusterConfig):
            # Gated products take as long with the norm as after it: they fetch their weights meanwhile.
            return Choice(config, fuses_norm=config.x_rows <= MAX_NORM_ROWS and not shape.is_gated)
        return LIBRARY if config is None else Choice(config, fuses_norm=bucket <= MAX_FUSED_NORM_ROWS)
    if bucket > 16:
        return LIBRARY
    num_splits = 1 if shape.n > 16384 else 2 if shape.n > 8192 else 4
    return Choice(TileConfig(block_n=32 if shape.is_gated else 64, num_splits=num_splits))


def _vector_config(shape: Shape) -> VectorConfig:
    if shape.is_gated or shape.n > 16384 or shape.k > 8192:
        return VectorConfig(4, 4096, 4)
    if shape.n > 4096:
        return VectorConfig(16, 512, 4)
    # Many small programs where a step of 2,048 is cut off at the end: Qwen2.5-7B's o takes 7.2 us for 9.6.
    return VectorConfig(4, 2048, 4) if shape.k % 2048 else VectorConfig(16, 2048, 8)


def _cluster_config(shape: Shape, bucket: int) -> ClusterConfig | None:
    """Where it was fastest in the chain of a whole step. From 129 to 192 rows the library is."""
    if bucket < 32 or bucket == 192 or (shape.n > 16384 and not shape.is_gated):
        return None
    if shape.is_gated:
        if bucket == 128 and shape.n <= 128 * 2 * NUM_MULTIPROCESSORS:  # two blocks fit a multiprocessor
            return fitting(shape.n, 128, blocks_per_sm=2, max_stages=4, x_stages=2)
        return fitting(shape.n, max(64, bucket), blocks_per_sm=2, max_stages=4 if bucket <= 64 else 6)
    is_long = shape.k > 8192
    if bucket <= 64:
        return fitting(shape.n, 64, num_splits=2, max_stages=12 if is_long else 8 if shape.n <= 4096 else 6)
    return fitting(shape.n, 128, num_splits=2, max_stages=10, x_stages=4) if bucket == 128 and is_long else None


def _stream_config(shape: Shape, bucket: int) -> StreamConfig | None:
    if shape.is_gated:
        if bucket <= 64:
            return StreamConfig(2, 128, 2 if bucket == 32 else 3, num_splits=1)
        return StreamConfig(2, 64, 3, num_splits=1) if bucket <= 128 else None
    if shape.n > 16384:
        halves, num_stages = (1, 3) if bucket <= 16 else (2, 2)
        return StreamConfig(halves, 128, num_stages, num_splits=1) if bucket <= 64 else None
    if bucket <= 8:
        return StreamConfig(1, 128, 4, num_splits=4) if shape.n > 4096 else StreamConfig(1, 256, 3, num_splits=4)
    if bucket <= 16:
        return StreamConfig(2, 128, 4) if shape.n > 4096 else StreamConfig(1, 256, 3, num_splits=2)
    return None


class Choices:
    """Measured choices, with the built-in ones behind them."""

    def __init__(self, measurements: Iterable[Measurement] = ()):
        self._table = {(m.shape, m.num_rows): m.choice for m in measurements}

    def choose(self, shape: Shape, num_rows: int, capability: int) -> Choice:
        """The choice for a product of `num_rows` rows on a GPU of this compute capability (10 · major + minor)."""
        bucket = bucket_of(num_rows)
        if bucket is None:
            return LIBRARY
        key = (shape, bucket)
        if key not in self._table:
            self._table[key] = default_choice(shape, bucket, capability)
        return self._table[key]
