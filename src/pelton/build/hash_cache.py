"""Remembers the hashes of files that have not changed since, so that a second start reads none of them again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pelton.hashing import FileEntry, digest, hash_file


class HashCache:
    """Digests by path, believed while size, inode, and times of change stay the same.

    Kept in one JSON file. A damaged or unwritable one costs time and nothing else; two processes that save at once
    lose some of each other's entries, no more.
    """

    def __init__(self, file: Path):
        self._file = file
        self._entries: dict[str, list[int | str]] = _load(file)
        self._is_changed = False

    def digest(self, path: Path) -> str:
        """The digest of a file's size and chunks.

        Raises:
            OSError: it cannot be read.
        """
        known = self._entries.get(str(path.resolve()))
        if known and known[:-1] == _stat(path):
            return str(known[-1])
        stat = _stat(path)
        value = entry_digest(hash_file(path))
        self._record(path, stat, value)
        return value

    def record(self, path: Path, value: str) -> None:
        """Remembers the digest of a file that was hashed elsewhere and has not changed since."""
        self._record(path, _stat(path), value)

    def _record(self, path: Path, stat: list[int | str], value: str) -> None:
        self._entries[str(path.resolve())] = [*stat, value]
        self._is_changed = True

    def save(self) -> None:
        """Writes what is new, without entries of files that are gone."""
        if not self._is_changed:
            return
        entries = {path: entry for path, entry in self._entries.items() if os.path.exists(path)}
        temporary = self._file.with_name(f".{self._file.name}.tmp-{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**_load(self._file), **entries}), encoding="utf-8")
            os.replace(temporary, self._file)
        except OSError:
            return
        self._is_changed = False


def entry_digest(entry: FileEntry) -> str:
    """One digest for a file's size and all its chunks."""
    return digest(f"{entry.size_bytes}:{','.join(entry.chunks)}".encode())


def _stat(path: Path) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _load(file: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {path: entry for path, entry in content.items() if isinstance(entry, list) and len(entry) == 5}
