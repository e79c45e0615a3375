"""engine.json: what is refused, with which reason and which command; hashes over chunks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton import hashing
from pelton.config import BuildConfig, ModelConfig, ParallelConfig, RopeConfig
from pelton.errors import EngineError
from pelton.hashing import DamagedFileError, FileEntry, check_file, hash_file, iter_checked
from pelton.manifest import (
    Limits,
    Manifest,
    build_command,
    check_gpu,
    check_options,
    check_sizes,
    read_manifest,
    verify_files,
    write_manifest,
)
from pelton.manifest import iter_checked as iter_engine_file

MODEL = ModelConfig(architecture="LlamaForCausalLM", vocab_size=320, hidden_size=64, intermediate_size=96, num_layers=2,
                    num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=512, eos_ids=(1, 5),
                    sliding_window=8, layer_kinds=("full", "sliding"),
                    rope=RopeConfig(kind="longrope", short_factor=(1.0, 1.5), long_factor=(2.0, 3.25), theta=1e6))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 64 bytes, so that small files have many."""
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 64)
    return 64


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "my engine"
    (path / "tokenizer").mkdir(parents=True)
    (path / "weights-0.safetensors").write_bytes(bytes(range(256)) * 4)
    (path / "tokenizer" / "tokenizer.json").write_text("{}")
    names = ("weights-0.safetensors", "tokenizer/tokenizer.json")
    write_manifest(path, Manifest(
        pelton_version="0.1.0", created_at="2026-01-01T00:00:00+00:00", source="org/model", revision="v1",
        options=BuildConfig(max_seq_len=256), model=MODEL, parallel=ParallelConfig(),
        limits=Limits(max_batch_size=256, max_seq_len=256, max_input_len=255, max_num_tokens=8192, tokens_per_block=64),
        dtype="float32", kv_cache_dtype="float32", gpu="sm_90", is_tuned=False,
        files={name: hash_file(path / name) for name in names}))
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(EngineError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mend(path: Path) -> str:
    return f"; rebuild it: pelton build org/model -o '{path}' --max-seq-len 256 --revision v1"


def test_reads_what_was_written(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest.model == MODEL
    write_manifest(engine, manifest)
    assert read_manifest(engine) == manifest
    verify_files(engine, manifest)
    check_sizes(engine, manifest)
    check_gpu(engine, manifest, "sm_90")
    assert [path.name for path in engine.iterdir() if path.name.startswith(".")] == []


def test_names_its_hash(engine: Path) -> None:
    content = json.loads((engine / "engine.json").read_text())
    assert content["hashing"] == {"algorithm": "sha256-128", "chunk_bytes": 16 * 2**20}
    weights = (engine / "weights-0.safetensors").read_bytes()
    expected = hashlib.sha256(weights).hexdigest()[:32]
    assert content["files"]["weights-0.safetensors"] == {"size_bytes": 1024, "chunks": [expected]}


def test_missing_or_damaged_manifest(engine: Path, tmp_path: Path) -> None:
    assert "not an engine directory" in refusal(lambda: read_manifest(tmp_path))
    assert "pelton build MODEL -o " in refusal(lambda: read_manifest(tmp_path))
    whole = (engine / "engine.json").read_bytes()
    for content in (whole[:-50], b"", b"\xff" * 10, b"[]", b"null"):
        (engine / "engine.json").write_bytes(content)
        assert "engine.json: damaged" in refusal(lambda: read_manifest(engine))


@pytest.mark.parametrize("change", [
    {"limits": {"max_batch_size": 256, "max_seq_len": 512, "max_input_len": 255, "max_num_tokens": 8192,
                "tokens_per_block": 64}},
    {"dtype": "bfloat16"}, {"gpu": "cpu"}, {"files": {}}, {"digest": None}, {"unknown": 1},
])
def test_edited_manifest(engine: Path, change: dict) -> None:
    file = engine / "engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert refusal(lambda: read_manifest(engine)) == \
        f"{engine}: engine.json was changed after the build, and options cannot be changed there{mend(engine)}"


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (3, "another"), ("2", "another"), (None, "another")])
def test_other_format_version(engine: Path, version: object, age: str) -> None:
    file = engine / "engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": version}))
    text = refusal(lambda: read_manifest(engine))
    assert f"made by {age} version of Pelton (engine format {version!r}, this is 2)" in text
    assert text.endswith(mend(engine))


def test_command_survives_a_manifest_of_another_shape(engine: Path) -> None:
    file = engine / "engine.json"
    file.write_text(json.dumps({"format_version": 7, "options": {"warp": 9}, "source": 5}))
    assert refusal(lambda: read_manifest(engine)).endswith(f"rebuild it: pelton build MODEL -o '{engine}'")


@pytest.mark.parametrize(("damage", "reason", "changes_size"), [
    (lambda data: data[:1000], "weights-0.safetensors is truncated: 1,000 of 1,024 bytes", True),
    (lambda data: data + b"x", "weights-0.safetensors was altered: 1,025 bytes in place of 1,024", True),
    (lambda data: data[:500] + b"?" + data[501:],
     "weights-0.safetensors was altered between bytes 448 and 512", False),
    (lambda data: data[:-1] + b"\0", "weights-0.safetensors was altered between bytes 960 and 1,024", False),
])
def test_damaged_file(engine: Path, small_chunks: int, damage: Callable[[bytes], bytes], reason: str,
                      changes_size: bool) -> None:
    file = engine / "weights-0.safetensors"
    manifest = read_manifest(engine)
    manifest = dataclasses.replace(manifest, files={**manifest.files, file.name: hash_file(file)})
    verify_files(engine, manifest)
    file.write_bytes(damage(file.read_bytes()))
    assert refusal(lambda: verify_files(engine, manifest, threads=3)) == f"{engine}: {reason}{mend(engine)}"
    assert refusal(lambda: list(iter_engine_file(engine, manifest, file.name))) == f"{engine}: {reason}{mend(engine)}"
    verify_files(engine, manifest, names=["tokenizer/tokenizer.json"])
    if changes_size:
        assert refusal(lambda: check_sizes(engine, manifest)) == f"{engine}: {reason}{mend(engine)}"
    else:
        check_sizes(engine, manifest)


def test_missing_file(engine: Path) -> None:
    manifest = read_manifest(engine)
    (engine / "tokenizer" / "tokenizer.json").unlink()
    expected = f"{engine}: tokenizer.json is missing{mend(engine)}"
    assert refusal(lambda: check_sizes(engine, manifest)) == expected
    assert refusal(lambda: verify_files(engine, manifest)) == expected


def test_other_gpu(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert refusal(lambda: check_gpu(engine, manifest, "sm_89")) == \
        (f"{engine}: built for a GPU of architecture sm_90, but this machine runs it on a GPU of architecture sm_89"
         f"{mend(engine)}")
    assert "runs it on a CPU" in refusal(lambda: check_gpu(engine, manifest, "cpu"))
    for gpu in ("cpu", "sm_90"):  # built without a GPU, it runs anywhere
        check_gpu(engine, dataclasses.replace(manifest, gpu="cpu"), gpu)


def test_option_that_was_not_built(engine: Path) -> None:
    manifest = read_manifest(engine)
    for same in (BuildConfig(), BuildConfig(max_seq_len=256, dtype="float32", max_input_len=255)):
        check_options(engine, manifest, same)
    text = refusal(lambda: check_options(engine, manifest, BuildConfig(max_seq_len=512, tokens_per_block=16)))
    assert text == (f"{engine}: max_seq_len was fixed at build to 256, 512 was asked for; rebuild it: pelton build "
                    f"org/model -o '{engine}' --max-seq-len 512 --tokens-per-block 16 --revision v1")
    assert "dtype was fixed" in refusal(lambda: check_options(engine, manifest, BuildConfig(dtype="float16")))


def test_build_command_quotes_and_names_only_what_differs() -> None:
    assert build_command("pelton-tiny", Path("/e"), BuildConfig(), ParallelConfig()) == "pelton build pelton-tiny -o /e"
    text = build_command("/my models/a", Path("/e"), BuildConfig(dtype="float16"), ParallelConfig(tp_size=2))
    assert text == "pelton build '/my models/a' -o /e --dtype float16 --tp-size 2"


@given(content=st.binary(max_size=400), chunk_bytes=st.integers(1, 100), threads=st.integers(1, 4))
def test_chunks_are_the_file(tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk_bytes: int,
                             threads: int) -> None:
    file = tmp_path_factory.mktemp("hashing") / "file"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "CHUNK_BYTES", chunk_bytes)
        entry = hash_file(file, threads=threads)
        chunks = [content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes)]
        assert entry == FileEntry(size_bytes=len(content), chunks=tuple(
            hashlib.sha256(chunk).hexdigest()[:32] for chunk in chunks))
        read = list(iter_checked(file, entry, threads=threads))
    assert [offset for offset, _ in read] == list(range(0, len(content), chunk_bytes))
    assert b"".join(chunk for _, chunk in read) == content


def test_good_chunks_come_before_the_damage(tmp_path: Path, small_chunks: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(640))
    entry = hash_file(file)
    with file.open("r+b") as handle:
        handle.seek(200)
        handle.write(b"x")
    reader = iter_checked(file, entry, threads=2)
    assert [next(reader)[0] for _ in range(3)] == [0, 64, 128]
    with pytest.raises(DamagedFileError, match="altered between bytes 192 and 256"):
        next(reader)
    with pytest.raises(DamagedFileError):
        check_file(file, entry)
