"""Compiled kernels that travel with an engine: kept while it is built, found again before anything is compiled.

Triton files what it compiles under a key made from the kernel's source, its specialization, the GPU's architecture and
its own version. A folder here holds a folder per key with two files, NAME.json (how to launch it) and NAME.cubin (the
code for the GPU): what Triton's cache holds too, less the intermediate forms and anything that would run on the host.
A key that a folder does not hold is looked up in the user's own cache, and compiled into it if need be; the folder is
only read.
"""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.cache import CacheManager, FileCacheManager

_SUFFIXES = (".json", ".cubin")


@dataclass
class Counts:
    """Kernels asked for, by where they were found."""

    num_kept: int = 0
    """In a folder that came with an engine."""
    num_cached: int = 0
    """In the user's cache."""
    num_compiled: int = 0

    def copy(self) -> Counts:
        return Counts(self.num_kept, self.num_cached, self.num_compiled)

    def since(self, earlier: Counts) -> Counts:
        return Counts(self.num_kept - earlier.num_kept, self.num_cached - earlier.num_cached,
                      self.num_compiled - earlier.num_compiled)


counts = Counts()
"""Of this process, since the first `use_folder`."""
_folders: dict[str, Path] = {}  # key -> the folder that holds its files
_kept_in: Path | None = None
_lock = threading.Lock()


class KeptKernels(CacheManager):
    """Triton's cache of one key: an engine's folder in front of the user's cache."""

    def __init__(self, key: str, override: bool = False, dump: bool = False):
        self._key, self._options = key, {"override": override, "dump": dump}
        self._folder = None if override or dump else _folders.get(key)

    @functools.cached_property
    def _own(self) -> FileCacheManager:
        """The user's; made when needed, as it makes a folder that may not be writable."""
        return FileCacheManager(self._key, **self._options)

    def get_file(self, filename: str) -> str | None:
        return self._own.get_file(filename)

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        return self._own.put(data, filename, binary)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The files of a kernel, by name, if it need not be compiled. filename: NAME.json."""
        if self._folder is not None:
            group = {path.name: str(path) for path in _files(self._folder, filename)}
            if len(group) == len(_SUFFIXES):
                _add("num_kept")
                return group
        group = self._own.get_group(filename)
        if group:
            _add("num_cached")
            _keep(self._key, filename, group)
        return group

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        _add("num_compiled")
        _keep(self._key, filename, group)
        return self._own.put_group(filename, group)


def use_folder(folder: Path | None) -> Counts:
    """Has kernels looked up in a folder first, from now on in this process. Returns the counts so far.

    Args:
        folder: whoever calls has checked its files; None only begins to count.
    """
    knobs.cache.manager_class = KeptKernels
    if folder is not None and folder.is_dir():
        _folders.update({path.name: path for path in folder.iterdir()})
    return counts.copy()


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Copies into a folder every kernel that is found or compiled while the block runs.

    Kernels that the process has loaded before are not looked up again, and so are missed: begin with the block.
    """
    global _kept_in
    use_folder(None)
    folder.mkdir(parents=True, exist_ok=True)
    _kept_in = folder
    try:
        yield
    finally:
        _kept_in = None


def num_kernels(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.cubin"))


def _files(folder: Path, filename: str) -> Iterator[Path]:
    stem = filename.removesuffix(".json")
    return (path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").is_file())


def _keep(key: str, filename: str, group: dict[str, str]) -> None:
    if _kept_in is None:
        return
    stem = filename.removesuffix(".json")
    target = _kept_in / key
    target.mkdir(exist_ok=True)
    for suffix in _SUFFIXES:
        shutil.copyfile(group[f"{stem}{suffix}"], target / f"{stem}{suffix}")


def _add(name: str) -> None:
    with _lock:
        setattr(counts, name, getattr(counts, name) + 1)
