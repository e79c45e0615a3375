"""Triton kernels on a machine without a GPU: its interpreter, which must be chosen before triton is first imported.

tests/conftest.py calls `choose`, so every process of pytest-xdist has chosen before it collects anything. Tests put
their tensors on `DEVICE`: the same test runs interpreted on a CPU and compiled on a GPU. What must compile without a
GPU (ahead-of-time tests) runs in a subprocess with `compiled_environment`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_VARIABLE = "TRITON_INTERPRET"
_HAS_GPU = Path("/dev/nvidiactl").exists()
DEVICE = "cuda" if _HAS_GPU else "cpu"


def choose() -> None:
    """Sets the interpreter on where there is no NVIDIA driver, unless the environment says otherwise."""
    if _HAS_GPU or _VARIABLE in os.environ:
        return
    assert "triton" not in sys.modules, "triton was imported before the interpreter could be chosen"
    os.environ[_VARIABLE] = "1"


def compiled_environment() -> dict[str, str]:
    """The environment of a subprocess in which triton compiles."""
    return {**os.environ, _VARIABLE: "0"}
