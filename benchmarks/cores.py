"""CPU cores of their own for the parts of a measurement, so that they do not take each other's time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

Cores = frozenset[int]


def parse_cores(text: str | None) -> Cores:
    """Reads "0-3,8" as the cores 0 to 3 and 8; nothing stands for all that this process may use.

    Raises:
        ValueError: it is not written so, or this process may not use one of them.
    """
    allowed = os.sched_getaffinity(0)
    if not text:
        return frozenset(allowed)
    cores = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    if not cores <= allowed:
        raise ValueError(f"cores {sorted(cores - allowed)} of {text!r} are not among {sorted(allowed)}")
    return frozenset(cores)


@contextmanager
def on_cores(cores: Cores) -> Iterator[None]:
    """Keeps the calling thread, and the processes that it starts in the block, on these cores."""
    before = os.sched_getaffinity(0)  # 0 is the calling thread
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
