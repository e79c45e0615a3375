"""What a user's options mean for the build and for the run, and where the build happens."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pelton.build.child import build_in_child
from pelton.build.prepare import ensure_engine
from pelton.checkpoint.hub import shipped_model
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ParallelConfig
from pelton.engine.options import resolve_engine, split_options
from pelton.errors import CapacityError, CheckpointError, ConfigError, EngineDeadError, MissingPartError
from pelton.host import Gpu
from pelton.manifest import read_manifest


def test_each_option_goes_where_it_belongs():
    build, run = split_options({"dtype": "float32", "max_seq_len": 99, "overlap": False, "max_queue_size": 3})
    assert build == BuildConfig(dtype="float32", max_seq_len=99)
    assert run == ExecutorConfig(overlap=False, max_queue_size=3)
    assert split_options({}) == (BuildConfig(), ExecutorConfig())


@pytest.mark.parametrize(("asked", "built"), [(None, 256), (1, 256), (256, 256), (300, 300)])
def test_a_smaller_batch_narrows_the_run_and_a_larger_one_widens_the_build(asked, built):
    build, run = split_options({"max_batch_size": asked})
    assert (build.max_batch_size, run.max_batch_size) == (built, asked)


@pytest.mark.parametrize("kv", [KvCacheConfig(max_blocks=5, tokens_per_block=16),
                                {"max_blocks": 5, "tokens_per_block": 16}])
def test_the_kv_cache_config_may_be_a_dict_and_its_block_size_is_built(kv):
    build, run = split_options({"kv_cache_config": kv})
    assert run.kv_cache_config == KvCacheConfig(max_blocks=5, tokens_per_block=16)
    assert build.tokens_per_block == 16


@pytest.mark.parametrize(("options", "match"), [
    ({"bogus": 1}, "unknown option 'bogus'; known are .*max_batch_size"),
    ({"max_batch_size": "8"}, "max_batch_size: Expected `int | null`, got `str`"),
    ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
    ({"max_batch_size": 10**6}, "max_batch_size must be between"),
    ({"kv_cache_config": {"bogus": 1}}, "unknown key kv_cache_config.'bogus'"),
    ({"kv_cache_config": 5}, "kv_cache_config: Expected `object`"),
    ({"kv_cache_config": {"free_memory_fraction": 2}}, "free_memory_fraction must be above 0"),
    ({"dtype": "int3"}, "it can be float32, bfloat16, float16, auto"),
    ({"tokens_per_block": 17}, "it can be 16, 32, 64, 128"),
    ({"overlap": "yes"}, "overlap: Expected `bool`"),
])
def test_wrong_options_are_named(options, match):
    with pytest.raises(ConfigError, match=match.replace("|", r"\|")):
        split_options(options)


def test_a_build_in_a_child_leaves_torch_out_and_is_the_same_engine():
    code = ("import sys; from pelton.engine.options import resolve_engine\n"
            "path, run = resolve_engine('pelton-tiny', {'max_seq_len': 333}, in_child=True)\n"
            "print(path); assert 'torch' not in sys.modules and run.max_batch_size is None")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, _ = resolve_engine("pelton-tiny", {"max_seq_len": 333})
    assert done.stdout.strip() == str(path)
    assert done.stderr.startswith("pelton: building the engine of pelton-tiny")
    other = ensure_engine("pelton-tiny", BuildConfig(max_seq_len=334), show_progress=False)
    mine, theirs = read_manifest(path), read_manifest(other)
    assert mine.files["weights-0.safetensors"] == theirs.files["weights-0.safetensors"]
    assert mine.source == theirs.source == "pelton-tiny"


def in_child(source, out, **options):
    return build_in_child(source, out, BuildConfig(**options), parallel=ParallelConfig(), device="cpu",
                          source_name=str(source), revision=None, show_progress=False, remedy="ask the owner")


def test_errors_of_the_child_come_back_as_they_are(tmp_path, monkeypatch, capfd):
    tiny = shipped_model("pelton-tiny")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        in_child(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="max_seq_len must be at most"):
        in_child(tiny, tmp_path / "out", max_seq_len=10**6)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="ask the owner"):
        in_child(tiny, tmp_path / "file" / "out")
    assert capfd.readouterr().err == ""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(MissingPartError, match=r"torch.*pip install 'pelton\[engine\]'"):
        in_child(tiny, tmp_path / "out")
    (site / "sitecustomize.py").write_text("import os, sys\nif '-m' in sys.orig_argv: os._exit(7)\n")
    with pytest.raises(EngineDeadError, match="ended with code 7"):
        in_child(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_engine_too_large_for_the_gpu_is_refused_before_it_is_loaded(monkeypatch):
    gpu = Gpu(name="NVIDIA H200", architecture="sm_90", memory_bytes=2**37, free_bytes=2**30, driver="580")
    monkeypatch.setattr("pelton.engine.options.first_gpu", lambda: gpu)
    with pytest.raises(CapacityError, match=r"memory: .*\(weights 0\.02, activations .*KV blocks 0\.00\)"):
        resolve_engine("pelton-tiny", {})
    assert resolve_engine("pelton-tiny", {"device": "cpu"})[1].device == "cpu"
