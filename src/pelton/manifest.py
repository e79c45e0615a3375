"""The engine directory's schema, engine.json: the only contract between what builds an engine and what runs it.

    DIR/engine.json           the Manifest below
    DIR/weights-RANK.safetensors
    DIR/tuning.json           kernel choices, measured or not
    DIR/kernels/KEY/          compiled kernels under the keys of Triton's cache, each a .json and a .cubin
    DIR/ledger.json
    DIR/tokenizer/            tokenizer.json, chat template, generation config

Reading refuses by name: another format version, another GPU, a changed option, a damaged or missing file. Each refusal
is an EngineError that ends with the command that mends it. Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pelton.config import BuildConfig, Dtype, ModelConfig, ParallelConfig, from_dict, to_dict
from pelton.errors import ConfigError, EngineError
from pelton.hashing import (
    ALGORITHM,
    CHUNK_BYTES,
    ChunkSink,
    DamagedFileError,
    FileEntry,
    check_file,
    check_size,
    digest,
)
from pelton.hashing import drain_checked as _drain_checked
from pelton.hashing import iter_checked as _iter_checked

FORMAT_VERSION = 2
MANIFEST_NAME = "engine.json"
TUNING_NAME = "tuning.json"
LEDGER_NAME = "ledger.json"
TOKENIZER_DIR = "tokenizer"
KERNELS_DIR = "kernels"
WEIGHTS_PREFIX = "weights-"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server over this engine may be asked for."""

    max_batch_size: int
    """Sequences in one step."""
    max_seq_len: int
    """Prompt plus output tokens of one sequence."""
    max_input_len: int
    """Tokens of one prompt."""
    max_num_tokens: int
    """Tokens of one step, over all sequences."""
    tokens_per_block: int
    """Tokens in one block of the KV cache."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits(Limits):
    """Limits of an engine that is loaded, within which a scheduler plans."""

    num_blocks: int
    """Blocks of the KV cache."""
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """How the digests under `files` were made."""

    algorithm: str = ALGORITHM
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """engine.json."""

    format_version: int = FORMAT_VERSION
    pelton_version: str
    created_at: str
    """UTC, ISO 8601."""
    source: str
    """The model as it was given to build: a hub id, an absolute path or a shipped model's name."""
    revision: str | None = None
    """Of the hub's model, when one was asked for."""
    made_from: str = ""
    """Digest over all that the weights depend on (build/replaced.py); empty: the files changed while they were read."""
    options: BuildConfig
    """As they were given; `limits`, `dtype` and `kv_cache_dtype` are what they came to."""
    model: ModelConfig
    quantization: None = None
    """No scheme yet: weights are of type `dtype`."""
    parallel: ParallelConfig
    limits: Limits
    dtype: Dtype
    kv_cache_dtype: Dtype
    gpu: str
    """GPU architecture that the engine was built on and for, as "sm_90"; "cpu": built without a GPU, for any device."""
    gpu_name: str = ""
    """The GPU's type, as "NVIDIA H200"; empty without one."""
    weight_layout: Literal["row_major"] = "row_major"
    is_tuned: bool
    """Whether kernel choices were measured; otherwise they are the defaults."""
    hashing: Hashing = Hashing()
    files: dict[str, FileEntry]
    """Every file of the directory but engine.json, by its path inside."""


def pelton_version() -> str:
    return importlib.metadata.version("pelton")


def created_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def weights_name(rank: int) -> str:
    """File with the weights of one rank; rank = pp_rank * tp_size + tp_rank."""
    return f"{WEIGHTS_PREFIX}{rank}.safetensors"


def num_kernels(manifest: Manifest) -> int:
    """Compiled kernels in the directory."""
    return sum(name.startswith(f"{KERNELS_DIR}/") and name.endswith(".cubin") for name in manifest.files)


def is_engine_dir(path: Path) -> bool:
    return (path / MANIFEST_NAME).is_file()


def write_manifest(engine_dir: Path, manifest: Manifest) -> None:
    """Writes engine.json, with a digest over its own content."""
    content = to_dict(manifest)
    content["digest"] = _digest_of(content)
    temporary = engine_dir / f".{MANIFEST_NAME}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, engine_dir / MANIFEST_NAME)


def read_manifest(engine_dir: Path) -> Manifest:
    """Reads engine.json and checks that it is whole and of this format; no other file is touched.

    Raises:
        EngineError: it is missing, damaged, edited, or of another format version.
    """
    content = _read_json(engine_dir)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        age = "an older" if isinstance(version, int) and version < FORMAT_VERSION else "another"
        raise EngineError(f"{engine_dir}: made by {age} version of Pelton (engine format {version!r}, this is "
                          f"{FORMAT_VERSION}); rebuild it: {_command_of(content, engine_dir)}")
    recorded = content.pop("digest", None)
    if recorded != _digest_of(content):
        raise EngineError(f"{engine_dir}: {MANIFEST_NAME} was changed after the build, and options cannot be changed "
                          f"there; rebuild it: {_command_of(content, engine_dir)}")
    try:
        return from_dict(Manifest, content, where=f"{engine_dir / MANIFEST_NAME}")
    except ConfigError as error:
        raise EngineError(f"{error}; rebuild it: {_command_of(content, engine_dir)}") from None


def check_sizes(engine_dir: Path, manifest: Manifest) -> None:
    """Raises EngineError when a file is missing or has another size than was recorded. Reads no content."""
    for name, entry in manifest.files.items():
        try:
            check_size(engine_dir / name, entry)
        except DamagedFileError as error:
            raise _refusal(engine_dir, manifest, str(error)) from None


def verify_files(engine_dir: Path, manifest: Manifest, *, threads: int | None = None,
                 names: list[str] | None = None) -> None:
    """Reads files in parallel threads and compares them with the manifest's hashes.

    Args:
        names: the files to check; none: all.

    Raises:
        EngineError: a file is missing, truncated or altered.
    """
    for name in manifest.files if names is None else names:
        try:
            check_file(engine_dir / name, manifest.files[name], threads=threads)
        except (DamagedFileError, OSError) as error:
            raise _refusal(engine_dir, manifest, str(error)) from None


def iter_checked(engine_dir: Path, manifest: Manifest, name: str, *,
                 threads: int | None = None) -> Iterator[tuple[int, bytes]]:
    """One file's content in chunks of 16 MiB with their offsets, in order, hashed by threads that read ahead.

    Raises:
        EngineError: the file is missing, truncated or altered; what was yielded before is good.
    """
    try:
        yield from _iter_checked(engine_dir / name, manifest.files[name], threads=threads)
    except (DamagedFileError, OSError) as error:
        raise _refusal(engine_dir, manifest, str(error)) from None


def drain_checked(engine_dir: Path, manifest: Manifest, name: str, make_sink: Callable[[], ChunkSink], *,
                  threads: int | None = None) -> None:
    """One file's content into sinks, one per thread, hashed on the way (`hashing.drain_checked`).

    Raises:
        EngineError: the file is missing, truncated or altered.
    """
    try:
        _drain_checked(engine_dir / name, manifest.files[name], make_sink, threads=threads)
    except (DamagedFileError, OSError) as error:
        raise _refusal(engine_dir, manifest, str(error)) from None


def check_gpu(engine_dir: Path, manifest: Manifest, gpu: str) -> None:
    """Raises EngineError when the engine was built for a GPU architecture ("sm_90") and is to run on something else.

    One built without a GPU runs anywhere.
    """
    if manifest.gpu not in ("cpu", gpu):
        raise _refusal(engine_dir, manifest, f"built for {_device_name(manifest.gpu)}, but this machine runs it on "
                                             f"{_device_name(gpu)}")


def check_options(engine_dir: Path, manifest: Manifest, asked: BuildConfig) -> None:
    """Raises EngineError when an option was asked for that the engine was not built with.

    An option left at its default counts as not asked for.
    """
    default = BuildConfig()
    for field in dataclasses.fields(BuildConfig):
        want = getattr(asked, field.name)
        have = getattr(manifest.limits, field.name, None) or getattr(manifest, field.name)
        if want not in (getattr(default, field.name), have):
            command = build_command(manifest.source, engine_dir, asked, manifest.parallel, manifest.revision)
            raise EngineError(f"{engine_dir}: {field.name} was fixed at build to {have!r}, {want!r} was asked for; "
                              f"rebuild it: {command}")


def build_command(source: str, engine_dir: Path, options: BuildConfig, parallel: ParallelConfig,
                  revision: str | None = None) -> str:
    """The shell command that builds this engine, with the options that differ from their defaults."""
    words = ["pelton", "build", source, "-o", str(engine_dir)]
    for given in (options, parallel):
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if value != field.default:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
    if revision:
        words += ["--revision", revision]
    return shlex.join(words)


def _refusal(engine_dir: Path, manifest: Manifest, reason: str) -> EngineError:
    command = build_command(manifest.source, engine_dir, manifest.options, manifest.parallel, manifest.revision)
    return EngineError(f"{engine_dir}: {reason}; rebuild it: {command}")


def _read_json(engine_dir: Path) -> dict[str, Any]:
    path = engine_dir / MANIFEST_NAME
    mend = f"build it: pelton build MODEL -o {shlex.quote(str(engine_dir))}"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"{engine_dir}: not an engine directory, it has no {MANIFEST_NAME}; {mend}") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise EngineError(f"{path}: damaged, not valid JSON; re{mend}") from None
    if not isinstance(content, dict):
        raise EngineError(f"{path}: damaged, not a JSON object; re{mend}")
    return content


def _command_of(content: dict[str, Any], engine_dir: Path) -> str:
    """The build command from an engine.json that may be of any version or edited."""
    source = content.get("source")
    try:
        options = from_dict(BuildConfig, content.get("options", {}))
        parallel = from_dict(ParallelConfig, content.get("parallel", {}))
    except ConfigError:
        options, parallel = BuildConfig(), ParallelConfig()
    return build_command(source if isinstance(source, str) else "MODEL", engine_dir, options, parallel,
                         content.get("revision"))


def _digest_of(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest(text.encode())


def _device_name(gpu: str) -> str:
    return "a CPU" if gpu == "cpu" else f"a GPU of architecture {gpu}"
