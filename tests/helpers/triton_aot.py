"""Compiles the kernels that ops launch, for a GPU that is not there. Run as a program, in a process without the
interpreter: `python -m helpers.triton_aot CAPABILITY all|few MODULE...` prints one JSON line per kernel.

The ops run as they are, on CPU tensors, under a driver that only says which GPU to compile for: every launch is
compiled with the specializations that it would have, and not run.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pelton.kernels import gpu_features

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
"""Shared memory a program may have, per compute capability (CUDA C++ Programming Guide, table of capabilities)."""


class _AbsentGpu:
    """What compiling asks of a driver."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_cases(capability: int, modules: list[str], *, few: bool = False) -> list[dict[str, Any]]:
    """Runs every case of the modules' CASES (name -> callable), or those in FEW where there is such a list, and says
    what its launches compiled to."""
    driver.set_active(_AbsentGpu(capability))
    features = gpu_features.GpuFeatures(capability, 4, SHARED_KIB[capability] * 1024)
    gpu_features.gpu_features.__wrapped__.__globals__["_INTERPRETED"] = features
    records: list[dict[str, Any]] = []
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        kernel._run = lambda *args: None  # where later launches that are alike go
        asm = kernel.asm if hasattr(kernel, "asm") else {}
        records.append({"kernel": self.__name__, "shared_bytes": kernel.metadata.shared,
                        "num_wide_loads": asm.get("ptx", "").count("ld.global.v4.b32"), "asm": asm})
        return kernel

    JITFunction.run = compile_only
    results = []
    for module in map(importlib.import_module, modules):
        for name in (few and getattr(module, "FEW", None)) or module.CASES:
            records.clear()
            module.CASES[name]()
            assert records, f"{name} launched nothing"
            results += [{"case": name, **record} for record in records]
    return results


def main() -> None:
    for record in compile_cases(int(sys.argv[1]), sys.argv[3:], few=sys.argv[2] == "few"):
        print(json.dumps({key: value for key, value in record.items() if key != "asm"}))


if __name__ == "__main__":
    main()
