"""Two bars of a build for people at a terminal: weights written, and kernels measured beside that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pelton.checkpoint.progress import Advance

if TYPE_CHECKING:
    from pelton.build.tune import Rehearsal


@contextmanager
def build_bars(num_bytes: int, *, has_gpu: bool,
               is_shown: bool) -> Iterator[tuple[Advance, Callable[[Rehearsal], None]]]:
    """Shows them on stderr while the block runs, if that is a terminal; yields what advances each."""
    if not (is_shown and sys.stderr.isatty()):
        yield lambda _: None, lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<8}"), BarColumn(), TextColumn("{task.fields[told]:<28}"),
               TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        weights = bars.add_task("weights", total=num_bytes, told="")
        kernels = bars.add_task("kernels", total=None, told="starting", visible=has_gpu)

        def advance(done: int) -> None:
            bars.advance(weights, done)
            bars.update(weights, told=f"{bars.tasks[weights].completed / 1e9:.1f} of {num_bytes / 1e9:.1f} GB")

        def show(rehearsal: Rehearsal) -> None:
            done, num = len(rehearsal.measured), rehearsal.num_missing
            told = f"{done} of {num} products measured" if done < num else "compiling the rest"
            if rehearsal.num_kernels:
                told = f"{rehearsal.num_kernels} kernels kept"
            # Compiling what no product needs takes about as long as measuring half of them.
            bars.update(kernels, total=max(1, num * 3 / 2), completed=num * 3 / 2 if rehearsal.num_kernels else done,
                        told=told)

        yield advance, show
