"""Engine directories: built from both kinds of checkpoint, kept in a cache, refused or rebuilt when damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, make_checkpoint
from safetensors.torch import load_file

from pelton.build import hash_cache, prepare, replaced
from pelton.build.limits import resolve_limits
from pelton.build.prepare import ensure_engine
from pelton.build.show import ShowOptions, run_show
from pelton.build.write import BuildOptions, build, run_build
from pelton.checkpoint.convert import convert
from pelton.checkpoint.header import read_header
from pelton.checkpoint.hf_config import load_model_config
from pelton.checkpoint.pelton_checkpoint import rank_name
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.writer import PAD_PREFIX, TensorFileWriter
from pelton.config import BuildConfig, ParallelConfig
from pelton.errors import CheckpointError, ConfigError, EngineError, PeltonError
from pelton.ledger import Ledger
from pelton.manifest import Limits, read_manifest, verify_files, weights_name
from pelton.models.registry import get_architecture


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), dtype="bfloat16", num_hidden_layers=2)


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip_byte(file: Path, position: int = -70) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


# --- build ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_engine_holds_the_checkpoint(architecture: str, tmp_path: Path) -> None:
    path = make_checkpoint(architecture, tmp_path, sharded=True, num_hidden_layers=2)
    out = tmp_path / "engine"
    manifest = build(path, out)
    assert read_manifest(out) == manifest
    verify_files(out, manifest)
    assert manifest.model == load_model_config(path)
    specs = get_architecture(architecture).weights(manifest.model)
    header = read_header(out / weights_name(0))
    assert [name for name in header if not name.startswith(PAD_PREFIX)] == [spec.name for spec in specs]
    assert all(entry.start % 64 == 0 for name, entry in header.items() if not name.startswith(PAD_PREFIX))
    source, weights = CheckpointSource(path), load_file(out / weights_name(0))
    assert all(torch.equal(weights[spec.name], source.read(spec)) for spec in specs)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / "tokenizer" / name).read_bytes() == (path / name).read_bytes()


def test_manifest_ledger_and_tuning(llama: Path, tmp_path: Path) -> None:
    manifest = build(llama, tmp_path / "engine", BuildConfig(dtype="float32", max_seq_len=128, max_batch_size=4))
    assert (manifest.dtype, manifest.kv_cache_dtype, manifest.gpu, manifest.is_tuned) == \
        ("float32", "float32", "cpu", False)
    assert manifest.model.dtype == "bfloat16"  # the checkpoint's own
    assert manifest.source == str(llama)
    assert set(manifest.files) == {
        "weights-0.safetensors", "tuning.json", "ledger.json", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json", "tokenizer/generation_config.json"}
    tuning = json.loads((tmp_path / "engine" / "tuning.json").read_text())
    assert tuning == {"is_tuned": False, "reason": "no GPU", "gpu": "cpu", "choices": []}
    ledger = Ledger.from_json(json.loads((tmp_path / "engine" / "ledger.json").read_text()))
    header = read_header(tmp_path / "engine" / "weights-0.safetensors")
    assert ledger.weights_bytes == sum(e.num_bytes for n, e in header.items() if not n.startswith(PAD_PREFIX))
    assert ledger.block_bytes == 2 * 2 * 2 * 16 * 64 * 4  # k and v, layers, heads, dims, tokens, bytes
    assert ledger.tokens_per_block == 64


@pytest.mark.parametrize(("options", "limits"), [
    ({}, (256, 512, 511, 8192, 64)),
    ({"max_seq_len": 100}, (256, 100, 99, 8192, 64)),
    ({"max_seq_len": 100, "max_input_len": 40}, (256, 100, 40, 8192, 64)),
    ({"max_batch_size": 2, "max_num_tokens": 2, "tokens_per_block": 16}, (2, 512, 511, 2, 16)),
])
def test_limits(llama: Path, options: dict, limits: tuple[int, ...]) -> None:
    resolved = resolve_limits(BuildConfig(**options), load_model_config(llama))
    assert dataclasses.astuple(resolved) == limits


def test_long_contexts_are_asked_for_by_name(llama: Path) -> None:
    model = dataclasses.replace(load_model_config(llama), max_position_embeddings=131072)
    assert resolve_limits(BuildConfig(), model).max_seq_len == 32768
    assert resolve_limits(BuildConfig(max_seq_len=131072), model).max_seq_len == 131072


@pytest.mark.parametrize(("options", "text"), [
    ({"max_seq_len": 513}, "max_seq_len must be at most the model's context of 512 tokens .*got 513"),
    ({"max_seq_len": 1}, "max_seq_len must be at least 2"),
    ({"max_input_len": 512}, "max_input_len must be below max_seq_len"),
    ({"max_batch_size": 8, "max_num_tokens": 7}, "max_num_tokens must be at least max_batch_size"),
])
def test_limits_that_do_not_fit(llama: Path, tmp_path: Path, options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(llama, tmp_path / "engine", BuildConfig(**options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_checkpoint_leaves_nothing(model: Path, tmp_path: Path, damage: str) -> None:
    content = (model / damage).read_bytes()
    (model / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=damage):
        build(model, tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_missing_tokenizer_is_an_error(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer; looked for"):
        build(model, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_output_is_replaced_only_when_it_is_an_engine(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    build(llama, out)
    build(llama, out, BuildConfig(max_seq_len=128))
    assert read_manifest(out).limits.max_seq_len == 128
    with pytest.raises(ConfigError, match=r"holds other files and no engine\.json"):
        build(llama, tmp_path)
    with pytest.raises(ConfigError, match="is an engine already"):
        build(out, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


class Written:
    """Counts the tensors that builds write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.num = 0
        monkeypatch.setattr(TensorFileWriter, "write", self._write(TensorFileWriter.write))

    def _write(self, inner):
        def write(writer, name, tensor):
            self.num += 1
            inner(writer, name, tensor)

        return write

    def since(self) -> int:
        num, self.num = self.num, 0
        return num


def test_an_engine_that_is_replaced_gives_its_weights(model: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    out, written = tmp_path / "engine", Written(monkeypatch)
    first = build(model, out)
    assert written.since() > 0
    inode = (out / weights_name(0)).stat().st_ino
    second = build(model, out, BuildConfig(max_seq_len=128))
    assert (written.since(), second.limits.max_seq_len) == (0, 128)
    assert second.files[weights_name(0)] == first.files[weights_name(0)]
    verify_files(out, second)
    stat = (out / weights_name(0)).stat()
    assert (stat.st_ino, stat.st_nlink) == (inode, 1), "nothing is shared once the old engine is gone"
    assert sorted(path.name for path in tmp_path.iterdir() if path != model) == ["engine"]
    other = build(model, tmp_path / "other")
    assert written.since() > 0
    assert other.made_from == first.made_from


@pytest.mark.parametrize("change", ["weights", "config", "dtype", "damage", "code", "no links"])
def test_weights_that_may_differ_are_written_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   change: str) -> None:
    out, written, options = tmp_path / "engine", Written(monkeypatch), BuildConfig()
    build(model, out)
    num = written.since()
    match change:
        case "weights":
            flip_byte(next(model.glob("*.safetensors")))
        case "config":
            content = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 0.5}))
        case "dtype":
            options = BuildConfig(dtype="float16")
        case "damage":
            flip_byte(out / weights_name(0))
        case "code":
            monkeypatch.setattr(replaced, "_code_digest", lambda packages: "other")
        case "no links":
            monkeypatch.setattr("os.link", lambda *args: (_ for _ in ()).throw(OSError("not here")))
    manifest = build(model, out, options)
    assert written.since() == num
    verify_files(out, manifest)


def test_a_source_that_changes_under_a_build_is_not_trusted(model: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def write(writer, name, tensor, inner=TensorFileWriter.write):
        os.utime(model / "config.json")
        inner(writer, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(TensorFileWriter, "write", write)
        assert build(model, tmp_path / "engine").made_from == ""
    written = Written(monkeypatch)
    assert build(model, tmp_path / "engine").made_from != ""
    assert written.since() > 0


def test_relative_output(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(llama, Path("deep/engine"))
    assert read_manifest(tmp_path / "deep" / "engine").source == str(llama)


MEMORY_PROBE = """
import sys
from pathlib import Path
import torch
from pelton.build.inputs import open_input

def anonymous_bytes():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024

small, large, out = map(Path, sys.argv[1:4])
kept = []
for path in (small, large):  # the small one brings in what is imported and allocated once
    source, samples = open_input(path, "bfloat16", None), []
    if len(sys.argv) > 4:
        read = source._source.read
        source._source.read = lambda spec: kept.append(read(spec)) or kept[-1]
    before = anonymous_bytes()
    source.write_weights([out], lambda _: samples.append(anonymous_bytes() - before))
print(max(samples))
"""


def test_memory_stays_near_a_few_tensors(llama: Path, tmp_path: Path) -> None:
    """Anonymous memory while 290 MB are cast and written, in a process that has allocated nothing before. What the
    writing threads hold is some 40 MB, however large the model."""
    path = make_checkpoint("LlamaForCausalLM", tmp_path, hidden_size=512, intermediate_size=512, num_hidden_layers=80,
                           vocab_size=512, num_key_value_heads=8, num_attention_heads=8)

    def peak(*more: str) -> int:
        command = [sys.executable, "-c", MEMORY_PROBE, str(llama), str(path), str(tmp_path / "weights"), *more]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    written = (path / "model.safetensors").stat().st_size / 2
    assert peak() < written / 3
    assert peak("keep every tensor") > written / 2  # the probe does see memory


# --- from rank files ---


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_engine_from_rank_files(llama: Path, tmp_path: Path, dtype: str) -> None:
    convert(llama, tmp_path / "converted", tp_size=2, pp_size=2)
    manifest = build(tmp_path / "converted", tmp_path / "engine", BuildConfig(dtype=dtype))
    assert manifest.parallel == ParallelConfig(tp_size=2, pp_size=2)
    direct = build(llama, tmp_path / "direct", BuildConfig(dtype=dtype), parallel=manifest.parallel)
    assert {n: e for n, e in manifest.files.items() if n != "ledger.json"} == \
        {n: e for n, e in direct.files.items() if n != "ledger.json"}
    for rank in range(4):
        stored = load_file(tmp_path / "converted" / rank_name(rank))
        written = load_file(tmp_path / "engine" / weights_name(rank))
        assert all(torch.equal(written[name], tensor.to(written[name].dtype)) for name, tensor in stored.items()
                   if not name.startswith(PAD_PREFIX))


def test_rank_files_keep_their_split(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "converted", tp_size=2)
    with pytest.raises(ConfigError, match=r"tp_size and pp_size: .* was converted for 2 and 1"):
        build(tmp_path / "converted", tmp_path / "engine", parallel=ParallelConfig(tp_size=4))
    flip_byte(tmp_path / "converted" / rank_name(1))
    with pytest.raises(CheckpointError, match=r"rank-0001\.safetensors was altered"):
        build(tmp_path / "converted", tmp_path / "engine")


# --- the cache ---


def test_second_start_builds_and_reads_nothing(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    first = ensure_engine(str(llama), BuildConfig())
    assert first.parent == cache / "engines"
    assert f"building the engine of {llama}" in capsys.readouterr().err

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("built or hashed again")

    monkeypatch.setattr(prepare, "build", refuse)
    monkeypatch.setattr(hash_cache, "hash_file", refuse)
    assert ensure_engine(str(llama), BuildConfig()) == first
    assert ensure_engine(str(llama), BuildConfig(max_seq_len=512)) == first  # what the default comes to
    assert capsys.readouterr().err == ""
    read_manifest(first)


def test_changed_content_or_option_is_another_engine(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [ensure_engine(str(model)), ensure_engine(str(model), BuildConfig(max_seq_len=64)),
               ensure_engine(str(model), BuildConfig(dtype="float32")),
               ensure_engine(str(model), parallel=ParallelConfig(tp_size=2))]
    flip_byte(model / "model.safetensors")
    engines.append(ensure_engine(str(model)))
    template = (model / "tokenizer_config.json").read_text().replace("assistant", "bot")
    (model / "tokenizer_config.json").write_text(template)
    engines.append(ensure_engine(str(model)))
    monkeypatch.setattr(prepare, "pelton_version", lambda: "99.0")
    engines.append(ensure_engine(str(model)))
    assert len(set(engines)) == len(engines)
    for engine in engines:
        verify_files(engine, read_manifest(engine))


def test_rank_files_go_through_the_cache(llama: Path, tmp_path: Path, cache: Path) -> None:
    convert(llama, tmp_path / "converted")
    engine = ensure_engine(str(tmp_path / "converted"))
    assert ensure_engine(str(tmp_path / "converted")) == engine
    assert ensure_engine(str(llama)) != engine


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda engine: flip_byte(engine / "weights-0.safetensors"), "weights-0.safetensors was altered"),
    (lambda engine: (engine / "engine.json").write_text("{"), "engine.json: damaged"),
    (lambda engine: (engine / "engine.json").unlink(), "no engine.json"),
    (lambda engine: (engine / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    (lambda engine: (engine / "ledger.json").write_text(""), "ledger.json is truncated"),
])
def test_damaged_entry_is_rebuilt_by_name(llama: Path, cache: Path, capsys: pytest.CaptureFixture[str], damage,
                                          reason: str) -> None:
    engine = ensure_engine(str(llama))
    damage(engine)
    capsys.readouterr()
    assert ensure_engine(str(llama)) == engine
    told = capsys.readouterr().err
    assert f"{engine.name} in the cache is damaged" in told
    assert reason in told
    verify_files(engine, read_manifest(engine))


def test_remains_of_a_killed_build_are_removed(llama: Path, cache: Path) -> None:
    engine = ensure_engine(str(llama))
    shutil.rmtree(engine)
    remains = engine.parent / f".{engine.name}.tmp-1"
    remains.mkdir()
    (remains / "weights-0.safetensors").write_bytes(b"half")
    assert ensure_engine(str(llama)) == engine
    assert not remains.exists()


def test_one_of_several_builds(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are held per open file, so threads exclude each other as processes do."""
    builds, results = [], []
    is_building = threading.Barrier(2)

    def slow(*args: object, **kwargs: object) -> object:
        builds.append(args)
        is_building.wait(timeout=60)
        return build(*args, **kwargs)

    monkeypatch.setattr(prepare, "build", slow)
    threads = [threading.Thread(target=lambda: results.append(ensure_engine(str(llama)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    is_building.wait(timeout=60)
    for thread in threads:
        thread.join(timeout=60)
    assert len(builds) == 1
    assert len(results) == 3
    assert len(set(results)) == 1


def test_unusable_hash_file_costs_only_time(llama: Path, cache: Path) -> None:
    engine = ensure_engine(str(llama))
    for content in (b"", b"[]", b'{"/x": 3}', b"\xff"):
        (cache / "hashes.json").write_bytes(content)
        assert ensure_engine(str(llama)) == engine


def test_unwritable_cache_names_the_variable(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/pelton")):
        monkeypatch.setenv("PELTON_CACHE", str(place))
        with pytest.raises(ConfigError, match=r"cannot be written .*; set PELTON_CACHE to a folder that can") as caught:
            ensure_engine(str(llama))
        assert "\n" not in str(caught.value)


def test_shipped_model(cache: Path) -> None:
    engine = ensure_engine("pelton-tiny")
    assert engine.name.startswith("pelton-tiny-")
    assert read_manifest(engine).source == "pelton-tiny"


# --- an engine directory given as the model ---


def test_engine_is_checked_and_returned(llama: Path, tmp_path: Path, cache: Path) -> None:
    engine = tmp_path / "engine"
    build(llama, engine, BuildConfig(max_seq_len=128))
    assert ensure_engine(str(engine), BuildConfig()) == engine
    assert ensure_engine(str(engine), BuildConfig(max_seq_len=128)) == engine
    assert not cache.exists()
    with pytest.raises(EngineError, match=r"max_seq_len was fixed at build to 128, 256 was asked for; .*pelton build"):
        ensure_engine(str(engine), BuildConfig(max_seq_len=256))
    flip_byte(engine / "tokenizer" / "tokenizer.json")
    with pytest.raises(EngineError, match=r"tokenizer\.json was altered .*pelton build .*--max-seq-len 128"):
        ensure_engine(str(engine))


def test_truncated_engine_is_refused(llama: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    build(llama, engine)
    file = engine / "weights-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"weights-0\.safetensors is truncated: .*; rebuild it: pelton build"):
        ensure_engine(str(engine))


def test_rebuild_command_works(llama: Path, tmp_path: Path) -> None:
    """The command at the end of a refusal, run as it stands, makes the engine usable again."""
    from pelton.cli import main

    engine = tmp_path / "my engine"
    build(llama, engine, BuildConfig(max_seq_len=128), parallel=ParallelConfig(tp_size=2))
    (engine / "tuning.json").unlink()
    with pytest.raises(EngineError) as caught:
        ensure_engine(str(engine))
    import shlex

    command = shlex.split(str(caught.value).partition("rebuild it: ")[2])
    assert command[0] == "pelton"
    assert main(command[1:]) == 0
    assert ensure_engine(str(engine)) == engine
    assert read_manifest(engine).limits.max_seq_len == 128
    assert read_manifest(engine).parallel.tp_size == 2


# --- commands ---


def test_build_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "engine")
    assert run_build(BuildOptions(model=str(llama), output=out, max_batch_size=8)) == 0
    assert "LlamaForCausalLM for cpu, bfloat16" in (text := capsys.readouterr().out)
    assert "untuned (no GPU)" in text
    assert run_build(BuildOptions(model=str(llama), output=out, json=True)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["limits"]["max_batch_size"] == 256
    assert Limits(**summary["limits"]) == read_manifest(Path(out)).limits
    with pytest.raises(PeltonError, match="does not exist"):
        run_build(BuildOptions(model=str(tmp_path / "nothing"), output=out))


def test_show_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "engine"
    build(llama, engine)
    assert run_show(ShowOptions(engine=str(engine))) == 0
    text = capsys.readouterr().out
    for part in ("LlamaForCausalLM", "untuned (no GPU)", "2 layers", "4 heads over 2 KV heads of 16", "sizes checked",
                 "max_num_tokens    8,192"):
        assert part in text
    assert run_show(ShowOptions(engine=str(engine), verify=True, json=True)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["hidden_size"] == 64
    assert shown["ledger"]["weights_bytes"] > 0
    assert shown["files"]["weights-0.safetensors"] == (engine / weights_name(0)).stat().st_size
    flip_byte(engine / "weights-0.safetensors")
    assert run_show(ShowOptions(engine=str(engine))) == 0
    with pytest.raises(EngineError, match=r"weights-0\.safetensors was altered"):
        run_show(ShowOptions(engine=str(engine), verify=True))
    with pytest.raises(EngineError, match="not an engine directory"):
        run_show(ShowOptions(engine=str(llama)))
