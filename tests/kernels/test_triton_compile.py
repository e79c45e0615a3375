"""Every GPU kernel compiles ahead of time for each compute capability we serve, within its shared memory; those that
do little but read and write do so 16 bytes at a time.

To add kernels: a module of tests/helpers with CASES, name to a callable that launches ops on CPU tensors, in MODULES;
with FEW, names of cases that launch every kernel of the module, if all of them take long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.triton_interpret import compiled_environment

pytest.importorskip("triton")

MODULES = ["helpers.aot_attention", "helpers.aot_linear", "helpers.aot_sampling"]
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
"""Shared memory of a program: CUDA C++ Programming Guide, technical specifications per compute capability."""


ALL_SHAPES = (86, 90)
"""Here all cases are compiled: where shared memory is smallest, and where other kernels run. Elsewhere a module's FEW
are enough, which hold every kernel."""


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_compiles_within_shared_memory(capability):
    records = compiled(capability)
    too_large = [record for record in records if record["shared_bytes"] > SHARED_KIB[capability] * 1024]
    assert records
    assert not too_large
    streams = [record for record in records if record["kernel"] in ("rms_norm_kernel", "act_mul_kernel")]
    assert streams
    assert all(record["num_wide_loads"] for record in streams), "rows are to be read 16 bytes at a time"


def compiled(capability: int) -> list[dict[str, Any]]:
    """Each module in a process of its own: compiling takes long, and a core may be idle."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    cases = "all" if capability in ALL_SHAPES else "few"
    processes = [subprocess.Popen([sys.executable, "-m", "helpers.triton_aot", str(capability), cases, module],
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env={**compiled_environment(), "PYTHONPATH": path}) for module in MODULES]
    try:
        outputs = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(line) for lines, _ in outputs for line in lines.splitlines()]
