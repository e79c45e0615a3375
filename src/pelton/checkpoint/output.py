"""An output folder that appears whole or not at all: written beside its place and renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pelton.errors import CapacityError, ConfigError


@contextmanager
def staged_output(out: Path, *, marker: str, num_bytes: int, remedy: str = "") -> Iterator[Path]:
    """A new folder that takes the place of `out` when the block ends without an error, and is removed otherwise.

    Args:
        out: must not exist, be empty, or hold `marker`, which says that it is an earlier output.
        marker: file name in the root of every such output.
        num_bytes: what will be written, about; checked against the free space first.
        remedy: ends the message of a folder that cannot be written.

    Raises:
        ConfigError: `out` holds something else, or cannot be written.
        CapacityError: the disk is too small.
    """
    out = out.resolve()
    check_replaceable(out, marker=marker)
    staging = out.parent / f".{out.name}.tmp-{os.getpid()}"
    with explained_os_errors(out, remedy):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(staging)
        staging.mkdir()
        try:
            check_space(out.parent, num_bytes)
            yield staging
            _move_into_place(staging, out)
        finally:
            remove_tree(staging)


def check_replaceable(out: Path, *, marker: str) -> None:
    """Raises ConfigError when a folder may not be replaced by an output."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ConfigError(f"output: {out} exists and is not a directory")
    if os.path.ismount(out):
        raise ConfigError(f"output: {out} is a mount point, which cannot be replaced as a whole; name a folder inside "
                          f"it, as {out / 'NAME'}")
    if any(out.iterdir()) and not (out / marker).exists():
        raise ConfigError(f"output: {out} holds other files and no {marker}; it is left alone. Name a new or empty "
                          "folder")


def check_space(folder: Path, num_bytes: int) -> None:
    """Raises CapacityError when the disk under a folder has less than num_bytes free."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise CapacityError(f"output: {folder} has {free / 1e9:.2f} GB free, {num_bytes / 1e9:.2f} GB are needed; free "
                            "some space or choose another disk")


@contextmanager
def explained_os_errors(place: Path, remedy: str = "") -> Iterator[None]:
    """Turns the operating system's errors about writing into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"output: no space left for {place}; free some or choose another disk") from None
        reason = (error.strerror or str(error)).lower() + (f": {error.filename}" if error.filename else "")
        raise ConfigError(f"output: {place} cannot be written ({reason}){remedy and '; ' + remedy}") from None


def remove_tree(path: Path) -> None:
    """Removes a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _move_into_place(staging: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.rename(staging, out)  # also over an empty folder
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    os.rename(out, old)
    try:
        os.rename(staging, out)
    except OSError:
        os.rename(old, out)
        raise
    remove_tree(old)
