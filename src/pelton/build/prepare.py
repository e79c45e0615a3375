"""From any name of a model to an engine directory: an engine as it is, anything else through the engine cache.

The cache's key covers the content of the checkpoint's files, the options, the GPU's architecture and Pelton's version,
so that a changed file or option is another engine, and the second start finds the first one's.
"""

from __future__ import annotations

import fcntl
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pelton.build.cache_root import CACHE_VARIABLE, cache_root
from pelton.build.hash_cache import HashCache, entry_digest
from pelton.build.layout import Device, Tuning, architecture, find_gpu
from pelton.build.limits import resolve_limits
from pelton.build.write import build
from pelton.checkpoint.hf_config import CONFIG_NAME, load_model_config
from pelton.checkpoint.hub import absolute_source, resolve_model
from pelton.checkpoint.output import explained_os_errors, remove_tree
from pelton.checkpoint.pelton_checkpoint import MARKER_NAME, is_pelton_checkpoint, read_pelton_checkpoint
from pelton.checkpoint.reader import weight_files
from pelton.checkpoint.tokenizer_files import tokenizer_files
from pelton.config import BuildConfig, ParallelConfig, to_dict
from pelton.errors import EngineError
from pelton.hashing import digest
from pelton.manifest import (
    FORMAT_VERSION,
    WEIGHTS_PREFIX,
    Manifest,
    check_gpu,
    check_options,
    check_sizes,
    is_engine_dir,
    pelton_version,
    read_manifest,
    verify_files,
)

_REMEDY = f"set {CACHE_VARIABLE} to a folder that can be written"


def ensure_engine(model: str, config: BuildConfig | None = None, *, parallel: ParallelConfig | None = None,
                  revision: str | None = None, device: Device = "cpu", tuning: Tuning = "auto",
                  show_progress: bool = True, builder: Callable[..., Manifest] | None = None) -> Path:
    """The engine directory of a model, built into the cache when it is not there yet.

    An engine directory is returned as it is once its manifest, its GPU, the options asked for, its files' sizes and the
    content of all but the weights have been checked; weights are hashed by whoever loads them. Entries of the cache are
    checked to the last byte, once for as long as their files do not change, and built again when they are damaged.

    Args:
        model: a hub id, a checkpoint directory, an output of `pelton convert`, an engine directory, or "pelton-tiny".
        config: what to build; options left at their defaults fit any engine directory.
        device, tuning: as of `build`.
        show_progress: whether people see on stderr what is being done.
        builder: what builds; none: `build`. `build_in_child` keeps torch out of this process.

    Raises:
        EngineError: an engine directory is refused. CheckpointError: the model is.
        ConfigError: an option does not fit the model, or the cache cannot be written. CapacityError: the disk is full.
    """
    config = config or BuildConfig()
    path = Path(model).expanduser()
    if is_engine_dir(path):
        return _checked_engine(path, config, architecture(find_gpu(device)))
    model_dir = resolve_model(model, revision=revision)
    root = cache_root()
    hashes = HashCache(root / "hashes.json")
    gpu, parallel = find_gpu(device), parallel or ParallelConfig()
    made_for = [architecture(gpu), *([gpu.name, tuning == "off"] if gpu else [])]
    key = _key(model_dir, config, parallel, made_for, hashes)
    engine_dir = root / "engines" / f"{_slug(model)}-{key}"
    if engine_dir.exists() and _find_damage(engine_dir, hashes) is None:
        hashes.save()
        return engine_dir
    with _locked(engine_dir, show_progress=show_progress):
        damage = _find_damage(engine_dir, hashes) if engine_dir.exists() else ""
        if damage is not None:  # None: another process has built it while this one waited
            reason = f"{engine_dir.name} in the cache is damaged ({damage}); building it again" if damage else \
                     f"building the engine of {model} into {engine_dir}"
            _say(reason, is_shown=show_progress)
            _remove_remains(engine_dir)
            manifest = (builder or build)(
                model_dir, engine_dir, config, parallel=parallel, device="cpu" if gpu is None else "cuda",
                tuning=tuning, revision=revision, source_name=absolute_source(model), show_progress=show_progress,
                remedy=_REMEDY)
            for name, entry in manifest.files.items():
                hashes.record(engine_dir / name, entry_digest(entry))
        hashes.save()
    return engine_dir


def _checked_engine(engine_dir: Path, config: BuildConfig, gpu: str) -> Path:
    manifest = read_manifest(engine_dir)
    check_gpu(engine_dir, manifest, gpu)
    check_options(engine_dir, manifest, config)
    check_sizes(engine_dir, manifest)
    verify_files(engine_dir, manifest, names=[name for name in manifest.files if not name.startswith(WEIGHTS_PREFIX)])
    return engine_dir


def _key(model_dir: Path, config: BuildConfig, parallel: ParallelConfig, made_for: list[Any],
         hashes: HashCache) -> str:
    """Options that come to the same limits make the same key."""
    model = load_model_config(model_dir)
    if is_pelton_checkpoint(model_dir):
        parallel = read_pelton_checkpoint(model_dir).parallel
        content = [model_dir / MARKER_NAME]  # holds the hashes of all the others, which build checks
    else:
        content = [*weight_files(model_dir), *tokenizer_files(model_dir), model_dir / CONFIG_NAME]
    parts = {
        "format": FORMAT_VERSION,
        "pelton": pelton_version(),
        "gpu": made_for,
        "parallel": to_dict(parallel),
        "limits": to_dict(resolve_limits(config, model)),
        "dtypes": [config.dtype, config.kv_cache_dtype],
        "content": {path.name: hashes.digest(path) for path in content},
    }
    return digest(json.dumps(parts, sort_keys=True).encode())[:16]


def _find_damage(engine_dir: Path, hashes: HashCache) -> str | None:
    """What is wrong with an entry of the cache; None: nothing. Reads only files that changed since the last look."""
    try:
        manifest = read_manifest(engine_dir)
        check_sizes(engine_dir, manifest)
    except EngineError as error:
        return str(error).partition("; rebuild it")[0].removeprefix(f"{engine_dir}: ")
    for name, entry in manifest.files.items():
        if hashes.digest(engine_dir / name) != entry_digest(entry):
            return f"{name} was altered"
    return None


@contextmanager
def _locked(engine_dir: Path, *, show_progress: bool) -> Iterator[None]:
    """Lets one process at a time build an entry. The system frees the lock of a process that dies."""
    with explained_os_errors(engine_dir.parent, _REMEDY):
        engine_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = (engine_dir.parent / f".{engine_dir.name}.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is building {engine_dir.name}; waiting for it", is_shown=show_progress)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_remains(engine_dir: Path) -> None:
    """What a build that was killed, or a damaged entry, left behind; the lock says that nobody is at work there."""
    with explained_os_errors(engine_dir.parent, _REMEDY):
        remove_tree(engine_dir)
        for remains in engine_dir.parent.glob(f".{engine_dir.name}.tmp-*"):
            remove_tree(remains)


def _slug(model: str) -> str:
    """The model's own part of the name, fit for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(absolute_source(model)).name).strip("-.") or "model"


def _say(text: str, *, is_shown: bool) -> None:
    if is_shown:
        print(f"pelton: {text}", file=sys.stderr, flush=True)
