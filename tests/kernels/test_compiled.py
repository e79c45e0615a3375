"""Compiled kernels that are kept in a folder are found there by another process, Gluon's too. Compiles for a GPU that
is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path: Path):
    """Runs helpers/kept_kernels.py in a process of its own; returns (kept, cached, compiled)."""

    def run(action: str, folder: Path, cache: str) -> tuple[int, int, int]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path / cache),
                        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-m", "helpers.kept_kernels", action, str(folder)], env=environment,
                              stdout=subprocess.PIPE, text=True, check=True)
        counts = json.loads(done.stdout)
        return counts["num_kept"], counts["num_cached"], counts["num_compiled"]

    return run


def test_kept_kernels_are_not_compiled_again(run, tmp_path: Path) -> None:
    assert run("keep", tmp_path / "kept", "first") == (0, 0, 2)
    assert {path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()} == {".json", ".cubin"}
    before = sorted(tmp_path.joinpath("kept").rglob("*"))
    assert run("find", tmp_path / "kept", "second") == (2, 0, 0)
    assert not (tmp_path / "second").exists()  # nothing is written where nothing is compiled
    next((tmp_path / "kept").rglob("double_kernel.cubin")).unlink()
    assert run("find", tmp_path / "kept", "second") == (1, 0, 1)
    assert len(list((tmp_path / "kept").rglob("*"))) == len(before) - 1  # the folder is only read
    assert run("find", tmp_path / "kept", "second") == (1, 1, 0)
    assert run("keep", tmp_path / "again", "first") == (0, 2, 0)
    assert len(list((tmp_path / "again").rglob("*.cubin"))) == 2
    assert run("find", tmp_path / "nowhere", "first") == (0, 2, 0)
