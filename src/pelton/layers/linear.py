"""Linear layers and the embedding, whole or split over ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pelton.kernels.linear.prologue import Norm
from pelton.kernels.registry import Ops
from pelton.parallel.collectives import Group


class Linear:
    """y = x Wᵀ + b with the weight in the layout its kernel reads. Split by rows, each rank makes its part of y."""

    def __init__(self, weight: Tensor, bias: Tensor | None, ops: Ops):
        self.weight = ops.linear.prepare_weight(weight)  # [N, K]
        self.bias = bias  # [N]
        self._linear = ops.linear.linear

    def __call__(self, x: Tensor, *, norm: Norm | None = None, act: str | None = None,
                 residual: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """x: [T, K] to [T, N]; with act, which takes gate and up together, to [T, N / 2].

        The norm is taken of x before, the residual is added last and not used again by the caller.
        """
        return self._linear(x, self.weight, self.bias, norm=norm, act=act, residual=residual, out_dtype=out_dtype)


class RowParallelLinear(Linear):
    """A linear whose inputs are split over ranks (Megatron-LM's row parallelism): parts of the sum are added up."""

    def __init__(self, weight: Tensor, bias: Tensor | None, ops: Ops, group: Group):
        super().__init__(weight, bias if group.rank == 0 else None, ops)
        self._group = group

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """x: [T, K of this rank] to [T, N], the same on every rank; the residual is fused where one rank is all."""
        if self._group.size == 1:
            return super().__call__(x, residual=residual)
        out = self._group.all_reduce(super().__call__(x))
        return out if residual is None else residual + out


def _look_up(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of a weight [V, D]. From 2 to 16 tokens torch's embedding takes a GPU 4.6 to 7.7 us (H200), indexing 1.5;
    elsewhere indexing is no quicker."""
    return weight[token_ids] if weight.is_cuda and 2 <= len(token_ids) <= 16 else F.embedding(token_ids, weight)


class Embedding:
    """Token vectors, the vocabulary split over ranks, times a constant."""

    def __init__(self, weight: Tensor, scale: float, group: Group):
        self.weight = weight  # [V of this rank, D]
        # Rounded to the weight's type before use: so the models that scale were trained and published.
        self._scale = torch.tensor(scale, dtype=weight.dtype, device=weight.device) if scale != 1.0 else None
        self._group = group

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] int64 to [T, D]."""
        if self._group.size == 1:
            x = _look_up(token_ids, self.weight)
        else:
            num_rows = self.weight.shape[0]
            local = token_ids - self._group.rank * num_rows
            is_elsewhere = (local < 0) | (local >= num_rows)
            x = F.embedding(local.masked_fill(is_elsewhere, 0), self.weight)
            x = self._group.all_reduce(x.masked_fill(is_elsewhere[:, None], 0.0))
        return x if self._scale is None else x * self._scale


class Head:
    """From hidden states to logits, the vocabulary split over ranks."""

    def __init__(self, weight: Tensor, softcap: float | None, ops: Ops, group: Group):
        self._linear = Linear(weight, None, ops)
        self._softcap = softcap
        self._group = group

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [R, D] to logits [R, V], float32, c·tanh(x / c) where the model caps them at c."""
        logits = self._group.all_gather(self._linear(hidden, out_dtype=torch.float32))
        if self._softcap is not None:
            logits = logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits
