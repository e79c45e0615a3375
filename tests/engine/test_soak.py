"""The soak that GPUs are put through, at a size for a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_mixed_requests_leave_nothing_behind():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_soak.py"), "--device", "cpu", "--num-requests", "200",
               "--max-batch-size", "16", "--max-blocks", "70"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PELTON_COMMIT": "test"})
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    assert record["problems"] == []
    assert record["num_preemptions"] > 0
    assert record["num_cached_tokens"] > 0
    assert {"length", "stop", "cancelled", "stop_string"} <= set(record["ends"])
    assert sum(record["ends"].values()) == 200 + 200 // 16 + (200 % 16 > 14)  # one in 16 asks for two completions
