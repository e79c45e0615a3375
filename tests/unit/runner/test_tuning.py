"""What a runner makes of an engine's tuning: used on the GPU it was measured on, passed over by name elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_checkpoint
from triton import knobs

from pelton.build.write import build
from pelton.errors import EngineError
from pelton.hashing import hash_file
from pelton.kernels import compiled, gpu_features
from pelton.kernels.linear import measured
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import LIBRARY, Choice, Measurement, Shape, default_choice
from pelton.kernels.linear.measured import Setting
from pelton.kernels.linear.vector import VectorConfig
from pelton.manifest import Manifest, read_manifest, write_manifest
from pelton.runner import tuning
from pelton.runner.tuning import use_tuning

DEVICE = torch.device("cuda", 0)
SHAPE = Shape(512, 256)
CHOICE = Choice(VectorConfig(2, 512, 2))


def measurement(choice: Choice = CHOICE) -> Measurement:
    return Measurement(n=SHAPE.n, k=SHAPE.k, is_gated=False, num_rows=1, kernel=choice.kernel,
                       config={} if choice.config is None else dataclasses.asdict(choice.config),
                       fuses_norm=choice.fuses_norm, us=1.0, tb_per_s=1.0, tflop_per_s=1.0, share_of_limit=0.5)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A GPU to be asked for its name; what the process looks kernels up in is as before afterwards."""
    features = gpu_features.GpuFeatures(90, 132, 227 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(tuning, "gpu_features", lambda device: features)
    monkeypatch.setattr(tuning, "_read_triton_key", lambda: None)
    monkeypatch.setattr(linear, "_choices", linear._choices)
    monkeypatch.setattr(compiled, "_folders", {})
    manager = knobs.cache.manager_class
    yield Setting.here("NVIDIA H200", 90, "580.1")
    knobs.cache.manager_class = manager


@pytest.fixture(scope="module")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)
    engine = tmp_path_factory.mktemp("engines") / "engine"
    build(path, engine)
    return engine


@pytest.fixture
def engine(untuned: Path) -> Path:
    """With a compiled kernel, whose content nobody looks at here."""
    folder = untuned / "kernels" / "KEY"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "some_kernel.cubin").write_bytes(b"code")
    (folder / "some_kernel.json").write_text("{}")
    return untuned


def tune(engine: Path, setting: Setting, choices: list[dict]) -> Manifest:
    content = {"is_tuned": True, "gpu": "sm_90", **dataclasses.asdict(setting), "limits": {}, "choices": choices}
    (engine / "tuning.json").write_text(json.dumps(content))
    names = [str(path.relative_to(engine)) for path in engine.rglob("*") if path.is_file()
             and path.name != "engine.json"]
    write_manifest(engine, dataclasses.replace(read_manifest(engine), is_tuned=True, gpu="sm_90", files={
        name: hash_file(engine / name) for name in names}))
    return read_manifest(engine)


def chosen() -> Choice:
    """How a weight that is prepared now will run."""
    return linear.prepare_weight(torch.zeros(SHAPE.n, SHAPE.k)).choices.choose(SHAPE, 1, 90)


def test_measurements_are_used_where_they_were_made(engine: Path, gpu: Setting,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    use = use_tuning(engine, tune(engine, dataclasses.replace(gpu, driver="999"), [measurement().to_json()]), DEVICE)
    assert chosen() == CHOICE
    assert not caplog.records
    assert compiled._folders == {"KEY": engine / "kernels" / "KEY"}
    assert use.num_kept == 1


def test_models_in_one_process_keep_their_own(engine: Path, gpu: Setting) -> None:
    weights = []
    for choice in (CHOICE, LIBRARY, None):
        use_tuning(engine, tune(engine, gpu, [] if choice is None else [measurement(choice).to_json()]), DEVICE)
        weights.append(linear.prepare_weight(torch.zeros(SHAPE.n, SHAPE.k)))
    assert [weight.choices.choose(SHAPE, 1, 90) for weight in weights] == \
        [CHOICE, LIBRARY, default_choice(SHAPE, 1, 90)]


@pytest.mark.parametrize(("change", "reason"), [
    ({"gpu_name": "NVIDIA H100 80GB HBM3"}, "measured on NVIDIA H100 80GB HBM3, and this is NVIDIA H200"),
    ({"kernels": "0" * 32}, "measured with other kernels than this version's"),
    ({"capability": "ninety"}, "capability"),
])
def test_measurements_of_elsewhere_are_passed_over(engine: Path, gpu: Setting, caplog: pytest.LogCaptureFixture,
                                                   change: dict, reason: str) -> None:
    use_tuning(engine, tune(engine, dataclasses.replace(gpu, **change), [measurement().to_json()]), DEVICE)
    assert chosen() == default_choice(SHAPE, 1, 90)
    assert reason in caplog.text
    assert "products run as built in" in caplog.text


@pytest.mark.parametrize("change", [{"kernel": "vector", "config": {"warp": 9}}, {"us": "fast"}, {"speed": 1}])
def test_unknown_measurements_are_passed_over(engine: Path, gpu: Setting, caplog: pytest.LogCaptureFixture,
                                              change: dict) -> None:
    use_tuning(engine, tune(engine, gpu, [{**measurement().to_json(), **change}]), DEVICE)
    assert chosen() == default_choice(SHAPE, 1, 90)
    assert "its tuning is not used" in caplog.text


def test_an_untuned_engine_says_so(untuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(untuned)
    (untuned / "tuning.json").write_text('{"is_tuned": false, "reason": "no GPU", "gpu": "cpu", "choices": []}')
    files = {**manifest.files, "tuning.json": hash_file(untuned / "tuning.json")}
    with caplog.at_level(logging.INFO, "pelton.runner"):
        use_tuning(untuned, dataclasses.replace(manifest, files=files), DEVICE)
    assert "untuned (no GPU); products run as built in" in caplog.text
    assert chosen() == default_choice(SHAPE, 1, 90)


@pytest.mark.parametrize("name", ["tuning.json", "kernels/KEY/some_kernel.cubin"])
def test_damage_is_refused(engine: Path, gpu: Setting, name: str) -> None:
    manifest = tune(engine, gpu, [])
    content = bytearray((engine / name).read_bytes())
    content[1] ^= 1
    (engine / name).write_bytes(content)
    with pytest.raises(EngineError, match=f"{Path(name).name} was altered.*pelton build"):
        use_tuning(engine, manifest, DEVICE)


def test_compiling_is_told_of_only_where_the_engine_should_have_brought_the_kernels(
        engine: Path, gpu: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "counts", compiled.Counts())
    monkeypatch.setattr(tuning, "counts", compiled.counts)
    use = use_tuning(engine, tune(engine, gpu, []), DEVICE)
    compiled._add("num_kept")
    use.report()
    assert not caplog.records
    compiled._add("num_compiled")
    use.report()
    assert "1 of the engine's 1, 0 from the user's cache, 1 compiled; the engine's were made with torch" in caplog.text
    assert measured.kernels_digest() == gpu.kernels
