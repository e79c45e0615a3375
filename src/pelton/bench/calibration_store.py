"""The client's own error on this machine, measured when it is first needed and kept for a day."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

import pelton
from pelton.bench.calibrate import LEVELS, measure_error
from pelton.bench.files import write_atomic
from pelton.bench.results import ClientError
from pelton.errors import ConfigError

MAX_AGE_S = 24 * 3600.0


class _Entry(msgspec.Struct):
    machine: str
    measured_at: float
    error: ClientError


def level_of(concurrency: int) -> int:
    """The number of streams at which the error is measured for so many in flight: the next larger, at most 512."""
    return next((level for level in LEVELS if level >= concurrency), LEVELS[-1])


def client_errors(levels: Iterable[int]) -> list[ClientError]:
    """The error at each number of streams, from the store where it is fresh and of this machine, else measured.

    Raises:
        PeltonError: the calibration failed.
    """
    path, machine = _path(), _machine()
    entries = [e for e in _read(path) if e.machine == machine and time.time() - e.measured_at < MAX_AGE_S]
    known = {e.error.concurrency: e.error for e in entries}
    wanted = sorted(set(levels))
    missing = [level for level in wanted if level not in known]
    for level in missing:
        known[level] = measure_error(level)
        entries = [e for e in entries if e.error.concurrency != level]
        entries.append(_Entry(machine, time.time(), known[level]))
    if missing:
        with contextlib.suppress(ConfigError, OSError):  # measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(entries))
    return [known[level] for level in wanted]


def nearest(errors: Sequence[ClientError], concurrency: int) -> ClientError | None:
    """The error at the level that stands for so many in flight, or the closest one there is."""
    level = level_of(max(concurrency, 1))
    return min(errors, key=lambda e: abs(LEVELS.index(level) - LEVELS.index(e.concurrency)), default=None)


def _path() -> Path:
    root = Path(os.environ.get("PELTON_CACHE") or "~/.cache/pelton").expanduser()
    return root / "client-errors.json"


def _machine() -> str:
    """What the error depends on: another version or machine measures again."""
    return " ".join((pelton.__version__, platform.python_version(), platform.node(), platform.platform(),
                     str(os.cpu_count())))


def _read(path: Path) -> list[_Entry]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except (OSError, msgspec.DecodeError):
        return []
