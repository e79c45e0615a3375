"""The language of the plots: plotly.js figures in plain JSON, of which a small part is used.

The page hands them to plotly.js, `draw/` draws the same to SVG and PNG. Colours are left to both: a trace's
`meta.series` is the index of its colour, `meta.is_soft` marks what stands behind the measured (limits, frontiers).
Traces are `scatter` (lines, markers, text, error bars, steps) and `heatmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
Trace = dict[str, Any]

MIN_LOG_RATIO = 20.0  # a range this wide is drawn on a logarithmic axis
HEIGHT = 430  # pixels
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "hexagon", "star", "triangle-down", "cross")


@dataclass(frozen=True)
class Plot:
    """One or more figures under a heading, of which the reader picks one, and what they say."""

    id: str
    title: str
    caption: str
    figures: dict[str, Figure]
    """By what to pick; a single one may have an empty name."""

    @property
    def figure(self) -> Figure:
        """The one shown first."""
        return next(iter(self.figures.values()))


def axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Linear from zero, or logarithmic with 1-2-5 ticks where the values span a wide range."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < MIN_LOG_RATIO:
        return {"title": {"text": title}, "rangemode": "tozero"}
    bounds = (math.log10(low) - 0.12, math.log10(high) + 0.12)
    steps = (1, 2, 5) if bounds[1] - bounds[0] < 4 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(bounds[0]), math.ceil(bounds[1]) + 1) for step in steps]
    shown = [tick for tick in ticks if bounds[0] <= math.log10(tick) <= bounds[1]]
    return {"title": {"text": title}, "type": "log", "range": list(bounds), "tickvals": shown,
            "ticktext": [f"{tick:,g}" for tick in shown]}


def line(name: str, series: int, xs: Sequence[float], ys: Sequence[float], **more: Any) -> Trace:
    """A plain line; `more` goes into the trace as it is."""
    return {"type": "scatter", "mode": "lines", "name": name, "meta": {"series": series},
            "x": [digits(x) for x in xs], "y": [digits(y) for y in ys]} | more


def digits(value: float | None) -> float | None:
    """Five digits: finer than a screen, and short in the file."""
    return None if value is None else float(f"{value:.5g}")


def thin_out(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most `most` points: means of neighbours where there are more."""
    if len(xs) <= most:
        return list(xs), list(ys)
    size = math.ceil(len(xs) / most)
    groups = range(0, len(xs), size)
    return ([math.fsum(xs[i:i + size]) / len(xs[i:i + size]) for i in groups],
            [math.fsum(ys[i:i + size]) / len(ys[i:i + size]) for i in groups])
