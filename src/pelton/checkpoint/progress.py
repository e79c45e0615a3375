"""A progress bar in bytes for people at a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


@contextmanager
def bytes_bar(title: str, num_bytes: int, *, is_shown: bool = True) -> Iterator[Advance]:
    """Shows a bar on stderr while the block runs, if stderr is a terminal; yields what advances it."""
    if not (is_shown and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=num_bytes)
        yield lambda done: progress.advance(task, done)
