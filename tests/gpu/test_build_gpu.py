"""An engine tuned on a GPU: what it measured, and that it starts without compiling where nothing is cached."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from helpers.checkpoints import make_checkpoint

from pelton.build.prepare import ensure_engine
from pelton.build.write import build
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.hashing import hash_file
from pelton.kernels import compiled
from pelton.manifest import num_kernels, read_manifest, weights_name, write_manifest
from pelton.runner.runner import Runner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

BUILD = BuildConfig(tokens_per_block=16, max_seq_len=64, max_batch_size=4, max_num_tokens=16)
LOAD = """
import json, sys
from pathlib import Path
from pelton.config import ExecutorConfig, KvCacheConfig
from pelton.kernels import compiled
from pelton.runner.runner import Runner

Runner.from_engine(Path(sys.argv[1]), ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(max_blocks=16)))
print(json.dumps(vars(compiled.counts)))
"""


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory):
    path = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("tuned"), dtype="bfloat16", seed=1)
    return ensure_engine(str(path), BUILD, device="cuda", show_progress=False)


def test_products_were_measured(engine_dir):
    manifest = read_manifest(engine_dir)
    tuning = json.loads((engine_dir / "tuning.json").read_text())
    assert manifest.is_tuned
    assert manifest.gpu_name == tuning["gpu_name"] == torch.cuda.get_device_name()
    assert {choice["num_rows"] for choice in tuning["choices"]} == {1, 8, 16}
    assert all(0 < choice["share_of_limit"] <= 1.05 and choice["us"] > 0 for choice in tuning["choices"])
    assert num_kernels(manifest) > 10


def test_it_starts_without_compiling(engine_dir, tmp_path):
    """In a process whose own cache of kernels is empty, and cannot be asked for what the engine holds."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(engine_dir)], capture_output=True, text=True, check=True,
                          env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)})
    counts = json.loads(done.stdout)
    assert counts["num_kept"] > 10
    assert (counts["num_cached"], counts["num_compiled"]) == (0, 0)


def test_built_again_in_its_place_it_is_the_same(tmp_path, monkeypatch):
    """Without a rehearsal, and with its weights linked."""
    source = make_checkpoint("LlamaForCausalLM", tmp_path / "model", dtype="bfloat16", seed=1)
    first = build(source, tmp_path / "engine", BUILD, device="cuda")
    inode = (tmp_path / "engine" / weights_name(0)).stat().st_ino
    monkeypatch.setattr("pelton.build.tune.REHEARSAL", "no.such.module")
    second = build(source, tmp_path / "engine", BUILD, device="cuda")
    assert second.files == first.files
    assert (tmp_path / "engine" / weights_name(0)).stat().st_ino == inode
    Runner.from_engine(tmp_path / "engine", ExecutorConfig(
        device="cuda", kv_cache_config=KvCacheConfig(max_blocks=16))).close()


def test_tuning_of_another_gpu_is_passed_over(engine_dir, tmp_path, caplog):
    """Without its kernels, too: then they are compiled, or found in the user's cache."""
    other = tmp_path / "engine"
    other.mkdir()
    manifest = read_manifest(engine_dir)
    names = [name for name in manifest.files if not name.startswith("kernels/")]
    for name in names:
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes((engine_dir / name).read_bytes())
    tuning = json.loads((other / "tuning.json").read_text())
    (other / "tuning.json").write_text(json.dumps({**tuning, "gpu_name": "NVIDIA H700"}))
    write_manifest(other, dataclasses.replace(manifest, files={name: hash_file(other / name) for name in names}))
    before = compiled.counts.copy()
    with caplog.at_level(logging.INFO, "pelton.runner"):
        Runner.from_engine(other, ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(max_blocks=16))).close()
    assert "measured on NVIDIA H700, and this is" in caplog.text
    assert compiled.counts.since(before).num_kept == 0
