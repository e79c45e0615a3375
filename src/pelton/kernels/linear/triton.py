"""Matrix product with a stored weight on a GPU: our kernels for few rows, the library for the rest, as measured.

Weights stay row-major, so that the library can read them too. Norm, bias, activation and residual are computed in
float32 inside the products of few rows and rounded once: the result is a little closer to exact than the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pelton.kernels.activation.triton import act_mul
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.integers import ceil_div
from pelton.kernels.linear import cluster, stream, tiles, vector
from pelton.kernels.linear.choices import LIBRARY, Choice, Choices, Measurement, Shape
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.workspace import workspace
from pelton.kernels.norm.triton import rms_norm

_choices = Choices()


@dataclass(frozen=True)
class GpuWeight:
    """A weight, what was measured for its model, and how the copy engine reads it, by block shape."""

    data: Tensor
    """[N, K] row-major."""
    choices: Choices = field(default_factory=lambda: _choices, repr=False)
    _descriptors: dict[tuple[int, int], stream.TensorDescriptor] = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.itemsize

    def descriptor(self, rows: int, block_k: int) -> stream.TensorDescriptor:
        if (rows, block_k) not in self._descriptors:
            self._descriptors[rows, block_k] = stream.describe(self.data, rows, block_k)
        return self._descriptors[rows, block_k]


def prepare_weight(weight: Tensor) -> GpuWeight:
    """Takes a weight [N, K] as it is."""
    return GpuWeight(weight.contiguous())


def is_relaid(dtype: torch.dtype) -> bool:
    """Whether `prepare_weight` of this type makes a copy in another layout or type."""
    return False


def prepared_bytes(num_elements: int, dtype: torch.dtype) -> int:
    """What a prepared weight takes."""
    return num_elements * dtype.itemsize


def use_measurements(measurements: Iterable[Measurement]) -> None:
    """Has weights that are prepared from now on run as measured, where their shape was, else as built in."""
    global _choices
    _choices = Choices(measurements)


def linear(x: Tensor, weight: GpuWeight, bias: Tensor | None = None, *, norm: Norm | None = None,
           act: str | None = None, residual: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """As the reference's; the residual's sum takes the residual's memory."""
    shape = Shape(*weight.data.shape, is_gated=act is not None)
    choice = weight.choices.choose(shape, x.shape[0], gpu_features(x.device).capability)
    return run(choice, x, weight, bias, norm=norm, act=act, residual=residual, out_dtype=out_dtype)


def run(choice: Choice, x: Tensor, weight: GpuWeight, bias: Tensor | None = None, *, norm: Norm | None = None,
        act: str | None = None, residual: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """The product by a given choice, or by the next best where that cannot run it."""
    if x.shape[0] == 0:
        choice = LIBRARY
    elif isinstance(choice.config, stream.StreamConfig) and not _can_stream(x, weight):
        choice = replace(choice, config=tiles.TileConfig()) if x.shape[0] <= tiles.MAX_ROWS else LIBRARY
    elif isinstance(choice.config, cluster.ClusterConfig) and not _can_cluster(choice.config, x, weight, bias, act,
                                                                               residual, out_dtype):
        choice = LIBRARY
    if norm is not None and not (choice.fuses_norm and _can_fuse(norm, choice.config, x)):
        x, norm = rms_norm(x, *norm), None
    if choice.config is None:
        return _library(x, weight.data, bias, act, residual, out_dtype)
    x = x.contiguous()
    num_outputs = weight.data.shape[0] // (2 if act is not None else 1)
    out = residual if residual is not None and out_dtype in (None, residual.dtype) else torch.empty(
        x.shape[0], num_outputs, dtype=out_dtype or x.dtype, device=x.device)
    is_dependent = gpu_features(x.device).can_launch_early
    config = choice.config
    if isinstance(config, vector.VectorConfig):
        vector.launch(x, weight.data, bias, norm, act, residual, out, config, is_dependent=is_dependent)
    elif isinstance(config, cluster.ClusterConfig):
        cluster.launch(x, weight.data, bias, norm, act, residual, out, config)
    elif isinstance(config, tiles.TileConfig):
        tiles.launch(x, weight.data, bias, norm, act, residual, out, workspace(x.device), config)
    else:
        w_desc = weight.descriptor(config.rows, config.block_k)
        stream.launch(x, w_desc, bias, norm, act, residual, out, workspace(x.device), config)
    return out


def _can_stream(x: Tensor, weight: GpuWeight) -> bool:
    """The copy engine wants 16-byte aligned rows, the tensor cores' warpgroup products Hopper and 16-bit types."""
    return (gpu_features(x.device).capability == 90 and weight.dtype in (torch.bfloat16, torch.float16)
            and x.shape[1] % 8 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in (x, weight.data)))


def _can_cluster(config: cluster.ClusterConfig, x: Tensor, weight: GpuWeight, bias: Tensor | None, act: str | None,
                 residual: Tensor | None, out_dtype: torch.dtype | None) -> bool:
    """As for the stream; and eights of outputs, bias and residual read 8 bytes at a time, one type but for the result.
    """
    num_outputs = weight.data.shape[0] // (2 if act is not None else 1)
    return (_can_stream(x, weight) and cluster.is_available() and num_outputs % 8 == 0
            and config.num_splits <= ceil_div(x.shape[1], cluster.STEP) and (act is None or config.num_splits == 1)
            and weight.dtype == x.dtype
            and all(tensor is None or (tensor.dtype == x.dtype and tensor.data_ptr() % 8 == 0)
                    for tensor in (bias, residual))
            and out_dtype in (None, x.dtype, torch.float32))


def _can_fuse(norm: Norm, config: object, x: Tensor) -> bool:
    """The cluster kernel multiplies pairs of one 16-bit type, in blocks of few rows: with more it was slower."""
    return not isinstance(config, cluster.ClusterConfig) or (
        config.x_rows <= cluster.MAX_NORM_ROWS and norm.weight.dtype == x.dtype
        and norm.weight.data_ptr() % 16 == 0)


def _library(x: Tensor, weight: Tensor, bias: Tensor | None, act: str | None, residual: Tensor | None,
             out_dtype: torch.dtype | None) -> Tensor:
    if act is None and bias is None and residual is not None and out_dtype in (None, residual.dtype):
        return residual.addmm_(x, weight.t())
    if act is None and bias is None and residual is None and out_dtype not in (None, x.dtype) and x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=out_dtype)
    out = F.linear(x, weight, bias)
    if act is not None:
        out = act_mul(out, act)
    if residual is not None:
        out = residual.add_(out)
    return out if out_dtype is None else out.to(out_dtype)
