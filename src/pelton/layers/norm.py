"""RMSNorm as a layer, alone or with the residual sum before it."""

from __future__ import annotations

from torch import Tensor

from pelton.kernels.linear.prologue import Norm
from pelton.kernels.registry import Ops


class RMSNorm:
    """x / sqrt(mean(x²) + eps) · (weight + offset)."""

    def __init__(self, weight: Tensor, *, eps: float, offset: float, ops: Ops):
        self.weight = ops.norm.prepare_weight(weight, offset)  # [D]
        self._eps = eps
        self._op = ops.norm

    @property
    def prologue(self) -> Norm:
        """This norm as the start of the product that reads it."""
        return Norm(self.weight, self._eps)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, D]."""
        return self._op.rms_norm(x, self.weight, self._eps)

    def add(self, x: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual and the sum itself, [T, D] each; without x, of the residual alone."""
        if x is None:
            return self(residual), residual
        return self._op.add_rms_norm(x, residual, self.weight, self._eps)
