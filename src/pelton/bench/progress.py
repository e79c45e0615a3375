"""What a person sees while a benchmark runs: a line on standard error, nothing when it is no terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from pelton.bench.cell import CellSpec
from pelton.bench.client import Exchange, now_ns
from pelton.bench.results import CellResult, Distribution, TargetInfo

MIN_REDRAW_NS = 250_000_000
BAR_WIDTH = 20


class Progress:
    """A progress line; a silent one does nothing.

    Drawn by hand and rarely: a drawing library takes milliseconds for a frame, and stamps would wait for them.
    """

    def __init__(self, *, is_silent: bool = False, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._is_silent = is_silent or not self._out.isatty()
        self._width = shutil.get_terminal_size().columns - 1
        self._num_cells = self._cell_number = 0
        self._num_requests = self._num_ended = 0
        self._label = ""
        self._drawn_ns = 0

    def start(self, num_cells: int, target: TargetInfo) -> None:
        self._num_cells = num_cells
        self._print(f"{target.model} at {target.url}, {target.endpoint}; the template takes {target.template_tokens} "
                    "tokens")

    def cell_started(self, spec: CellSpec) -> None:
        self._cell_number += 1
        self._num_requests, self._num_ended = spec.load.num_requests or 0, 0
        mode = "streaming" if spec.is_stream else "whole answers"
        self._label = (f"cell {self._cell_number}/{self._num_cells}: {spec.load.label}, "
                       f"{spec.prompt_tokens} in, {spec.output_tokens} out, {mode}")
        self._draw()

    def request_ended(self, exchange: Exchange) -> None:
        """Counts a measured request; draws only when the last drawing is long enough ago."""
        self._num_ended += 1
        if not self._is_silent and exchange.end_ns - self._drawn_ns > MIN_REDRAW_NS:
            self._draw()

    def requests_ended(self, count: int) -> None:
        """Counts measured requests that other processes sent."""
        self._num_ended += count
        if not self._is_silent:
            self._draw()

    def cell_ended(self, cell: CellResult) -> None:
        ttft, latency = cell.distribution("ttft"), cell.distribution("e2e_latency")
        parts = [f"{cell.id:<18}"]
        if ttft is not None:
            parts.append(f"TTFT {_percentiles(ttft)}")
        elif latency is not None:
            parts.append(f"latency {_percentiles(latency)}")
        parts.append(f"{cell.value('output_throughput') or 0.0:,.1f} tokens/s")
        if cell.errors:
            parts.append(f"{sum(cell.errors.values())} failed")
        if cell.stop_reason:
            parts.append(cell.stop_reason)
        self._print("  ".join(parts))

    def stop(self) -> None:
        """Clears the line."""
        self._write("\r\x1b[K")

    def _draw(self) -> None:
        self._drawn_ns = now_ns()
        filled = BAR_WIDTH * self._num_ended // max(self._num_requests, 1)
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        self._write("\r\x1b[K" + f"{bar} {self._num_ended}/{self._num_requests}  {self._label}"[: self._width])

    def _print(self, line: str) -> None:
        self._write(f"\r\x1b[K{line}\n")

    def _write(self, text: str) -> None:
        if not self._is_silent:
            self._out.write(text)
            self._out.flush()


def _percentiles(found: Distribution) -> str:
    return f"P50 {found.p50:.1f} ms" + ("" if found.p95 is None else f", P95 {found.p95:.1f} ms")
