"""The watching process: `python -m pelton.bench.monitors.process FILE [--gpus] [--metrics-url URL]`.

Writes readings to FILE until its standard input ends, which is when the benchmark ends, however that happens.
"""

from __future__ import annotations

import argparse
import selectors
import sys
import time
from collections.abc import Callable

import msgspec

from pelton.bench.monitors.gpu import GpuReader, Unavailable
from pelton.bench.monitors.prometheus import Unreadable, fetch, parse
from pelton.bench.monitors.reading import Line, Missing, Reading

GPU_PERIOD_S = 0.1
SERVER_PERIOD_S = 1.0


class _Watched:
    """A source that is read every so often until it fails."""

    def __init__(self, source: str, period_s: float, read: Callable[[], list]) -> None:
        self.source, self.period_s, self.read = source, period_s, read
        self.due_s = time.monotonic()

    def take(self) -> Line:
        """One reading. Its time is the middle of the asking."""
        start = time.monotonic_ns()
        try:
            values = self.read()
        except Unreadable as error:
            return Missing(reason=f"server metrics: {error}")
        return Reading(source=self.source, at_ns=(start + time.monotonic_ns()) // 2, values=values)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--gpus", nargs="?", const="", help="all, or indices with commas")
    parser.add_argument("--metrics-url")
    options = parser.parse_args(arguments)
    with open(options.file, "ab", buffering=0) as out:
        watched = []
        if options.gpus is not None:
            try:
                reader = GpuReader(tuple(int(i) for i in options.gpus.split(",") if i))
                watched.append(_Watched("gpu", GPU_PERIOD_S, reader.read))
            except Unavailable as error:
                _write(out, Missing(reason=str(error)))
        if options.metrics_url:
            watched.append(_Watched("server", SERVER_PERIOD_S, lambda: parse(fetch(options.metrics_url))))
        _watch(watched, out)


def _watch(watched: list[_Watched], out) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        while watched:
            wait = min(source.due_s for source in watched) - time.monotonic()
            if wait > 0 and selector.select(wait):
                return  # only its end is ever read
            for source in [s for s in watched if s.due_s <= time.monotonic()]:
                line = source.take()
                _write(out, line)
                if isinstance(line, Missing):
                    watched.remove(source)
                # Readings that are late are left out, not made up for.
                source.due_s = max(source.due_s + source.period_s, time.monotonic())


def _write(out, line: Line) -> None:
    out.write(msgspec.json.encode(line) + b"\n")


if __name__ == "__main__":
    main()
