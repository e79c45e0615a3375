"""Building for a GPU: measurements, their cache, compiled kernels. A process that makes times up stands in for it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.checkpoints import make_checkpoint

from pelton.build import layout, replaced, tune
from pelton.build.measurements import MeasurementCache
from pelton.build.prepare import ensure_engine
from pelton.build.show import ShowOptions, run_show
from pelton.build.write import BuildOptions, build, run_build
from pelton.config import BuildConfig, ParallelConfig
from pelton.errors import CapacityError, ConfigError, EngineDeadError, EngineError
from pelton.host import Gpu
from pelton.kernels.linear.choices import ROW_BUCKETS, Measurement, Shape
from pelton.kernels.linear.measured import Setting
from pelton.kernels.linear.tuning import Product, model_products
from pelton.manifest import num_kernels, read_manifest, verify_files

GPU = Gpu(name="NVIDIA H200", architecture="sm_90", memory_bytes=140 * 2**30, free_bytes=139 * 2**30, driver="580.1")
LIMITS = BuildConfig(max_seq_len=128, max_batch_size=8)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), dtype="bfloat16", num_hidden_layers=2)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this a machine with a GPU, and with caches of its own in a folder. Returns Pelton's."""
    monkeypatch.setattr(layout, "first_gpu", lambda: GPU)
    monkeypatch.setattr(tune, "REHEARSAL", "helpers.fake_rehearsal")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("PELTON_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return folder / "cache"


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return pretend(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def once(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine for a GPU and the caches that its build left; a build takes seconds."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend(folder, monkeypatch)
        build(llama, folder / "engine", LIMITS, device="cuda")
    return folder


@pytest.fixture
def built(once: Path, tmp_path: Path) -> Path:
    """A copy of that engine; its caches are this test's."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "engine"


def tuning_of(engine: Path) -> dict:
    return json.loads((engine / "tuning.json").read_text())


def test_an_engine_for_a_gpu_is_tuned_and_holds_its_kernels(llama: Path, tmp_path: Path) -> None:
    manifest = build(llama, tmp_path / "engine", LIMITS, device="auto")
    assert (manifest.gpu, manifest.gpu_name, manifest.is_tuned) == ("sm_90", "NVIDIA H200", True)
    assert read_manifest(tmp_path / "engine") == manifest
    tuning = tuning_of(tmp_path / "engine")
    assert (tuning["gpu_name"], tuning["capability"], tuning["driver"]) == ("NVIDIA H200", 90, "580.1")
    assert tuning["limits"] == {"read_tb_per_s": 4.58, "matrix_tflop_per_s": 790.0, "source": "pelton/physics.py, H200"}
    wanted = {(p.shape, bucket) for p in model_products(manifest.model) for bucket in ROW_BUCKETS}
    from pelton.kernels.linear.measured import read_measurements

    assert {(m.shape, m.num_rows) for m in read_measurements(tuning["choices"])} == wanted
    assert num_kernels(manifest) == 2
    kernels = {name for name in manifest.files if name.startswith("kernels/")}
    assert {Path(name).name for name in kernels} == {f"{kernel}.{suffix}" for suffix in ("cubin", "json") for kernel in
                                                     ("double_kernel", "gluon_double_kernel")}
    verify_files(tmp_path / "engine", manifest)
    assert not list((tmp_path / "engine").glob(".*"))


def test_a_damaged_kernel_is_refused(built: Path) -> None:
    cubin = next(built.glob("kernels/*/*.cubin"))
    content = bytearray(cubin.read_bytes())
    content[100] ^= 1
    cubin.write_bytes(content)
    with pytest.raises(EngineError, match=r"kernels/.*cubin|cubin was altered"):
        ensure_engine(str(built), device="cuda")


def test_measurements_are_kept_by_kind_of_gpu(built: Path, gpu: Path) -> None:
    assert [path.name.startswith("nvidia-h200-") for path in (gpu / "measurements").iterdir()] == [True]


def test_the_next_build_measures_and_compiles_nothing(llama: Path, built: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(tune.Rehearsal, "take", lambda self, news, take=tune.Rehearsal.take: (
        seen.append(next(iter(news))), take(self, news))[1])
    build(llama, tmp_path / "second", LIMITS, device="cuda")
    assert seen
    assert "measured" not in seen
    assert (tmp_path / "second" / "tuning.json").read_bytes() == (built / "tuning.json").read_bytes()
    build(llama, tmp_path / "third", LIMITS, device="cuda", tuning="again")
    assert seen.count("measured") == len(tuning_of(built)["choices"])
    seen.clear()
    monkeypatch.setattr(layout, "first_gpu", lambda: dataclasses.replace(GPU, name="NVIDIA H100 80GB HBM3"))
    with pytest.raises(EngineDeadError):  # the stand-in knows one GPU's limits alone: it was asked to measure
        build(llama, tmp_path / "fourth", LIMITS, device="cuda")
    assert "limits" in seen


def test_an_engine_built_again_in_its_place_is_not_rehearsed(llama: Path, built: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    first, tuning = read_manifest(built), tuning_of(built)
    monkeypatch.setenv("FAKE_REHEARSAL", "fail")
    second = build(llama, built, LIMITS, device="cuda")
    assert tuning_of(built) == tuning
    assert second.files == {**first.files, "ledger.json": second.files["ledger.json"]}
    verify_files(built, second)
    assert not list(built.glob(".*"))


@pytest.mark.parametrize("change", ["limits", "again", "kernel", "code", "measurements"])
def test_a_rehearsal_that_may_differ_is_held_again(llama: Path, built: Path, gpu: Path,
                                                   monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    limits, tuning = LIMITS, "auto"
    match change:
        case "limits":
            limits = dataclasses.replace(LIMITS, max_batch_size=4)
        case "again":
            tuning = "again"
        case "kernel":
            next(built.glob("kernels/*/*.cubin")).write_bytes(b"")
        case "code":
            monkeypatch.setattr(replaced, "_code_digest", lambda packages: "other")
        case "measurements":
            next((gpu / "measurements").iterdir()).unlink()
    monkeypatch.setenv("FAKE_REHEARSAL", "fail")
    with pytest.raises(ConfigError, match="on strike"):
        build(llama, built, limits, device="cuda", tuning=tuning)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"products": 3}', b'{"products": {"x": 3}}'])
def test_a_damaged_cache_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    setting = Setting(gpu_name="G", capability=90, driver="", torch="1", triton="1", kernels="k")
    product = Product(Shape(64, 64))
    kept = [Measurement(n=64, k=64, is_gated=False, num_rows=bucket, kernel="library", config={}, fuses_norm=False,
                        us=1.0, tb_per_s=1.0, tflop_per_s=1.0, share_of_limit=0.5) for bucket in ROW_BUCKETS]
    MeasurementCache(tmp_path, setting).record([product], "bfloat16", kept)
    assert MeasurementCache(tmp_path, setting).find([product], "bfloat16") == kept
    next(tmp_path.rglob("*.json")).write_bytes(content)
    assert MeasurementCache(tmp_path, setting).find([product], "bfloat16") == []
    MeasurementCache(tmp_path, setting).record([product], "bfloat16", kept)
    assert MeasurementCache(tmp_path, setting).find([product], "bfloat16") == kept


def test_a_damaged_cache_costs_only_time(llama: Path, built: Path, tmp_path: Path, gpu: Path) -> None:
    file = next((gpu / "measurements").iterdir())
    file.write_bytes(b'{"products": {"x": 3}}')
    assert build(llama, tmp_path / "second", LIMITS, device="cuda").is_tuned
    assert json.loads(file.read_text())["products"]


def test_tuning_can_be_left_out(llama: Path, tmp_path: Path, gpu: Path) -> None:
    manifest = build(llama, tmp_path / "engine", LIMITS, device="cuda", tuning="off")
    assert (manifest.gpu, manifest.is_tuned, num_kernels(manifest)) == ("sm_90", False, 0)
    assert tuning_of(tmp_path / "engine")["reason"] == "kernels were not measured"
    assert not gpu.exists()


def test_ranks_are_measured_and_their_kernels_left_to_be_compiled(llama: Path, tmp_path: Path) -> None:
    manifest = build(llama, tmp_path / "engine", LIMITS, device="cuda", parallel=ParallelConfig(tp_size=2))
    assert manifest.is_tuned
    assert num_kernels(manifest) == 0
    products = model_products(manifest.model, tp_size=2)
    assert {c["n"] for c in tuning_of(tmp_path / "engine")["choices"]} == {p.shape.n for p in products}


@pytest.mark.parametrize(("way", "error", "text"), [
    ("fail", ConfigError, "the GPU is on strike"), ("die", EngineDeadError, "code 3.*--tuning off"),
])
def test_a_failed_rehearsal_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str,
                                           error: type[Exception], text: str) -> None:
    monkeypatch.setenv("FAKE_REHEARSAL", way)
    with pytest.raises(error, match=text):
        build(llama, tmp_path / "out" / "engine", LIMITS, device="cuda")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_build_that_is_stopped_stops_its_rehearsal(llama: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_REHEARSAL", "hang")
    processes, start = [], subprocess.Popen

    def remember(*args: object, **options: object) -> subprocess.Popen:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(tune.subprocess, "Popen", remember)

    def interrupt(rehearsal: tune.Rehearsal, news: dict, take=tune.Rehearsal.take) -> None:
        take(rehearsal, news)
        if len(rehearsal.measured) == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(tune.Rehearsal, "take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(llama, tmp_path / "out" / "engine", LIMITS, device="cuda")
    assert processes[0].returncode == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_too_large_is_refused_before_anything_is_written(llama: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "first_gpu", lambda: dataclasses.replace(GPU, memory_bytes=1700 * 2**20))
    monkeypatch.setattr(tune, "Rehearser", lambda *_, **__: pytest.fail("the GPU was used"))
    with pytest.raises(CapacityError, match=r"memory: .*weights .*reserve.*alone: max_num_tokens 2048"):
        build(llama, tmp_path / "out" / "engine", BuildConfig(max_num_tokens=500_000), device="cuda")
    assert not (tmp_path / "out").exists()


def test_devices(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(llama, tmp_path / "engine", LIMITS, device="cpu").gpu == "cpu"
    monkeypatch.setattr(layout, "first_gpu", lambda: None)
    assert build(llama, tmp_path / "engine", LIMITS, device="auto").gpu == "cpu"
    with pytest.raises(ConfigError, match="device: cuda was asked for, but there is no GPU"):
        build(llama, tmp_path / "engine", LIMITS, device="cuda")


def test_engines_in_the_cache_are_parted_by_gpu_and_tuning(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = ensure_engine(str(llama), LIMITS, device="cuda")
    assert ensure_engine(str(llama), LIMITS, device="auto") == tuned
    off = ensure_engine(str(llama), LIMITS, device="cuda", tuning="off")
    cpu = ensure_engine(str(llama), LIMITS, device="cpu")
    monkeypatch.setattr(layout, "first_gpu", lambda: dataclasses.replace(GPU, name="NVIDIA GH200"))
    other = ensure_engine(str(llama), LIMITS, device="cuda", tuning="off")
    assert len({tuned, off, cpu, other}) == 4


def test_commands_print_the_table(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "engine")
    assert run_build(BuildOptions(model=str(llama), output=out, max_seq_len=128)) == 0
    text = capsys.readouterr().out
    assert "measured on NVIDIA H200; limits 4.58 TB/s and 790 TFLOP/s" in text
    assert "% of limit" in text
    assert "LlamaForCausalLM for NVIDIA H200, bfloat16" in text
    assert "2 compiled kernels kept" in text
    row = next(line.split() for line in text.splitlines() if line.split()[3:4] == ["8"])
    assert row[4:] == ["library", "16.0", "1.00", "3", "25"]
    assert run_show(ShowOptions(engine=out)) == 0
    assert "on NVIDIA H200" in capsys.readouterr().out
    assert run_build(BuildOptions(model=str(llama), output=out, max_seq_len=128, json=True)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_kernels"] == 2
    assert summary["tuning"]["choices"][0]["us"] == 2.0
