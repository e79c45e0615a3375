"""What a build may take over from the engine that it replaces: weights made from the same files by the same code, and
what a rehearsal of the same engine left. All of it is checked against that engine's hashes first."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pelton
from pelton.config import Dtype, ParallelConfig, to_dict
from pelton.errors import EngineError
from pelton.hashing import FileEntry, digest
from pelton.manifest import (
    FORMAT_VERSION,
    KERNELS_DIR,
    TUNING_NAME,
    Manifest,
    read_manifest,
    verify_files,
)

REHEARSED = "rehearsed"
"""Name in tuning.json: digest over all that a rehearsal depends on; absent where not all kernels were kept."""
_WEIGHTS_CODE = ("checkpoint", "models")
_REHEARSAL_CODE = ("cache", "kernels", "layers", "models", "parallel", "runner")


def weights_digest(files: list[Path], dtype: Dtype, parallel: ParallelConfig) -> str:
    """Over all that an engine's weights depend on. Files count as the same while path, size, inode and times stay.

    Raises:
        OSError: one of them is gone.
    """
    stats = [(str(path.resolve()), path.stat()) for path in files]
    return _digest_of({
        "format": FORMAT_VERSION, "code": _code_digest(_WEIGHTS_CODE), "dtype": dtype, "parallel": to_dict(parallel),
        "files": [[path, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for path, stat in stats]})


def rehearsal_digest(job: dict[str, Any]) -> str:
    """Over all that a rehearsal's results depend on: what is rehearsed, with which choices, and the code that runs."""
    return _digest_of({"code": _code_digest(_REHEARSAL_CODE), **job})


class Replaced:
    """The engine at a place where another is to be; there may be none.

    Args:
        engine_dir: where it is. What cannot be read is as good as none.
    """

    def __init__(self, engine_dir: Path):
        self._dir = engine_dir
        self._manifest: Manifest | None = None
        try:
            self._manifest = read_manifest(engine_dir)
        except EngineError:
            return

    def link_weights(self, made_from: str, names: list[str], target: Path) -> dict[str, FileEntry] | None:
        """Gives its weights to a folder on the same disk, if they were made from the same.

        Returns:
            The files' entries; None where there is nothing to take, and then nothing is left in the folder.
        """
        manifest = self._manifest
        if manifest is None or not made_from or manifest.made_from != made_from or not self._is_whole(names):
            return None
        try:
            for name in names:
                os.link(self._dir / name, target / name)
        except OSError:  # a file system without links
            for name in names:
                (target / name).unlink(missing_ok=True)
            return None
        return {name: manifest.files[name] for name in names}

    def copy_rehearsal(self, rehearsed: str, target: Path) -> dict[str, Any] | None:
        """Copies its compiled kernels to a folder, if they came of the same rehearsal.

        Returns:
            The content of its tuning.json, or None.
        """
        manifest = self._manifest
        if manifest is None or not manifest.is_tuned:
            return None
        kernels = [name for name in manifest.files if name.startswith(f"{KERNELS_DIR}/")]
        if not self._is_whole([TUNING_NAME, *kernels]):
            return None
        tuning = json.loads((self._dir / TUNING_NAME).read_bytes())
        if tuning.get(REHEARSED) != rehearsed:
            return None
        for name in kernels:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._dir / name, target / name)
        return tuning

    def _is_whole(self, names: list[str]) -> bool:
        """Whether it has these files, unchanged."""
        if not set(names) <= self._manifest.files.keys():
            return False
        try:
            verify_files(self._dir, self._manifest, names=names)
        except EngineError:
            return False
        return True


@functools.cache
def _code_digest(packages: tuple[str, ...]) -> str:
    root = Path(pelton.__file__).parent
    files = sorted(path for package in packages for path in (root / package).rglob("*")
                   if path.suffix in (".py", ".cu", ".cuh"))
    return digest(b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files))


def _digest_of(content: Any) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())
