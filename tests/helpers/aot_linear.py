"""Launches of the linear, norm and activation ops at the shapes of public models, to be compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pelton.kernels.activation import triton as activation
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import Choice, Shape
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.tuning import candidates
from pelton.kernels.norm import triton as norm

HIDDEN, INNER, QKV = 256, 512, 384


def _run(choice: Choice, num_rows: int, n: int, k: int, dtype: torch.dtype, *, act: str | None = None,
         is_residual: bool = False, out_dtype: torch.dtype | None = None) -> None:
    x, weight = torch.empty(num_rows, k, dtype=dtype), linear.prepare_weight(torch.empty(n, k, dtype=dtype))
    is_first = not is_residual and out_dtype is None
    linear.run(choice, x, weight, torch.empty(n, dtype=dtype) if is_first else None,
               norm=Norm(torch.empty(k, dtype=dtype), 1e-5) if is_first else None, act=act,
               residual=torch.empty(num_rows, n, dtype=dtype) if is_residual else None, out_dtype=out_dtype)


def products(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Every candidate of a bucket for every product of a layer."""
    capability = gpu_features(torch.device("cpu")).capability
    for n, k, act in ((QKV, HIDDEN, None), (2 * INNER, HIDDEN, "silu"), (HIDDEN, INNER, None)):
        for choice in candidates(Shape(n, k, is_gated=act is not None), num_rows, capability):
            if choice.config is not None:
                _run(choice, num_rows, n, k, dtype, act=act, is_residual=n == HIDDEN)


def norms() -> None:
    x = torch.empty(3, HIDDEN, dtype=torch.bfloat16)
    norm.rms_norm(x, norm.prepare_weight(x[0], 1.0), 1e-5)
    norm.add_rms_norm(x, x.clone(), x[0], 1e-5)


CASES: dict[str, Callable[[], object]] = {
    **{f"linear of {rows} rows": partial(products, rows) for rows in (1, 16, 64)},
    "linear of float32": partial(products, 8, torch.float32),
    "norm": norms,
    "activation": lambda: [activation.act_mul(torch.empty(3, 4096, dtype=torch.bfloat16), kind)
                           for kind in ("silu", "gelu", "gelu_tanh")],
}
