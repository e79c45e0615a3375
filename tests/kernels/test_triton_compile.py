"""Every GPU kernel compiles ahead of time for each compute capability we serve, within its shared memory; those that
do little but read and write do so 16 bytes at a time.

To add kernels: a module of tests/helpers with CASES, name to a callable that launches ops on CPU tensors, in MODULES.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.triton_interpret import compiled_environment

pytest.importorskip("triton")

MODULES = ["helpers.aot_attention", "helpers.aot_linear", "helpers.aot_sampling"]
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
"""Shared memory of a program: CUDA C++ Programming Guide, technical specifications per compute capability."""


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_compiles_within_shared_memory(capability):
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "helpers.triton_aot", str(capability), *MODULES], text=True,
                          capture_output=True, env={**compiled_environment(), "PYTHONPATH": path}, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    too_large = [record for record in records if record["shared_bytes"] > SHARED_KIB[capability] * 1024]
    assert records
    assert not too_large
    streams = [record for record in records if record["kernel"] in ("rms_norm_kernel", "act_mul_kernel")]
    assert streams
    assert all(record["num_wide_loads"] for record in streams), "rows are to be read 16 bytes at a time"
