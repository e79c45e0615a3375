"""What all processes of a staged load must know: when it began, and how many of each stage's units may still begin.

It lies in a file that they map into memory, or in the memory of a single process. Changes are made under a lock of the
file; whoever waits for one looks once a millisecond, about as fine as the timers of an event loop are.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pelton.bench.client import now_ns
from pelton.bench.results import LoadStage

LOOK_EVERY_S = 0.001
_BEGAN = 0  # place of the first measured unit's moment; after it, for each stage: units left, the last one's moment
_SIZE = 8


class Board:
    """Whole numbers of 64 bits that several processes read and change. 0 stands for what has not happened yet."""

    def __init__(self, stages: Sequence[LoadStage], path: str | None) -> None:
        """Opens the file that `write_board` made; none: only this process needs to know."""
        self._file = None if path is None else os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(-1 if self._file is None else self._file, _SIZE * (1 + 2 * len(stages)))
        self._values = memoryview(self._memory).cast("q")
        if self._file is None:
            self._memory[:] = _first_values(stages)

    def close(self) -> None:
        self._values.release()
        self._memory.close()
        if self._file is not None:
            os.close(self._file)

    @property
    def is_shared(self) -> bool:
        return self._file is not None

    @property
    def began_ns(self) -> int:
        """When the first measured unit began."""
        return self._values[_BEGAN]

    def ended_ns(self, stage: int) -> int:
        """When the last unit of a stage by count began."""
        return self._values[2 + 2 * stage]

    def begin(self) -> None:
        """Says that a measured unit begins now."""
        if not self.began_ns:
            with self._locked():
                self._values[_BEGAN] = self.began_ns or now_ns()

    def claim(self, stage: int) -> bool:
        """Takes one of the units of a stage by count; False when all are taken."""
        with self._locked():
            left = self._values[1 + 2 * stage]
            if left:
                self._values[1 + 2 * stage] = left - 1
            if left == 1:
                self._values[2 + 2 * stage] = now_ns()
        return bool(left)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def write_board(stages: Sequence[LoadStage], path: Path) -> None:
    """Makes the file of a load that has not begun."""
    path.write_bytes(_first_values(stages))


def _first_values(stages: Sequence[LoadStage]) -> bytes:
    counts = b"".join((stage.num_requests or 0).to_bytes(_SIZE, sys.byteorder) + bytes(_SIZE) for stage in stages)
    return bytes(_SIZE) + counts
