"""Standard output that may fail: a full disk is told in one line, and nothing is written again at the exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _NamedOutput:
    """Standard output that gives its name to what keeps it from being written, such as a full disk."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        with self._naming():
            return self._out.write(text)

    def flush(self) -> None:
        with self._naming():
            self._out.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "standard output"
            drop(self._out)
            raise


@contextmanager
def named_output() -> Iterator[None]:
    """Names standard output in the errors of what is printed meanwhile, its last flush included.

    Raises:
        OSError: it cannot be written; its filename says what.
    """
    out = sys.stdout
    if out is not None:
        sys.stdout = _NamedOutput(out)
    try:
        yield
        if out is not None:
            sys.stdout.flush()  # at the exit nobody could tell that it failed
    finally:
        sys.stdout = out


def drop(out: TextIO) -> None:
    """Lets what is left in the buffer go nowhere, so that the exit does not try to write it again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
