"""The report's plots as plotly.js figures in plain JSON. Colours are left to the page, which knows the theme.

A trace's `meta.series` is the index of its colour. Cells with a failed audit are drawn hollow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pelton.bench.results import CellResult, Finding, RunResult

MIN_LOG_RATIO = 20.0  # a range this wide is drawn on a logarithmic axis
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "hexagon", "star", "triangle-down", "cross")


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what it says."""

    id: str
    title: str
    caption: str
    figure: dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    cells: list[CellResult]


def make_plots(result: RunResult) -> list[Plot]:
    """All plots that the result has figures for."""
    streamed = [c for c in result.cells if c.is_stream]
    failed = failed_cells(result.findings)
    builders = (ttft_over_tokens, throughput_over_concurrency, itl_over_concurrency, ttft_over_prompt)
    plots = (build(streamed or result.cells, failed) for build in builders)
    return [plot for plot in plots if plot is not None]


def failed_cells(findings: Iterable[Finding]) -> set[str]:
    """Ids of the cells whose figures do not mean what they seem to."""
    return {cell for finding in findings if finding.severity == "failure" for cell in finding.cells}


def ttft_over_tokens(cells: list[CellResult], failed: set[str]) -> Plot | None:
    """P95 TTFT over input tokens in flight, one line per prompt size."""
    figure = _figure(_by_prompt(cells), failed, x=lambda c: c.value("in_flight_input_tokens"), y=_p95_ttft,
                     x_title="input tokens in flight (mean, measured)", y_title="P95 time to first token (ms)",
                     label=lambda c: c.load.key.removeprefix("c"))
    return figure and Plot(
        "ttft-over-tokens", "Time to first token over input tokens in flight",
        "Each point is a cell; the mark above it is the load asked for (8: that many in flight; r2.5: requests a "
        "second). Across: measured requests in flight × true prompt tokens. Up: 95 of 100 requests had their first "
        "token within this time.", figure)


def throughput_over_concurrency(cells: list[CellResult], failed: set[str]) -> Plot | None:
    """Output tokens per second over measured requests in flight."""
    figure = _figure(_by_prompt(cells), failed, x=lambda c: c.value("in_flight_requests"),
                     y=lambda c: c.value("output_throughput"), x_title="requests in flight (mean, measured)",
                     y_title="output throughput (tokens/s)")
    return figure and Plot("throughput", "Output throughput over requests in flight",
                           "Generated tokens of all requests together, over the cell's whole wall time.", figure)


def itl_over_concurrency(cells: list[CellResult], failed: set[str]) -> Plot | None:
    """Median inter-token latency, or time per output token where that is withheld."""
    name = "itl" if any(c.distribution("itl") for c in cells) else "tpot"
    title = {"itl": "Inter-token latency", "tpot": "Time per output token"}[name]
    figure = _figure(_by_prompt(cells), failed, x=lambda c: c.value("in_flight_requests"),
                     y=lambda c: getattr(c.distribution(name), "p50", None),
                     x_title="requests in flight (mean, measured)", y_title=f"median {title.lower()} (ms)")
    return figure and Plot("inter-token", f"{title} over requests in flight",
                           "The pace of one stream once it runs: what each user sees.", figure)


def ttft_over_prompt(cells: list[CellResult], failed: set[str]) -> Plot | None:
    """P95 TTFT over the true prompt size, one line per load."""
    figure = _figure(_by_load(cells), failed, x=lambda c: getattr(c.distribution("prompt_tokens"), "p50", None),
                     y=_p95_ttft, x_title="prompt tokens (as the server counted them)",
                     y_title="P95 time to first token (ms)")
    if figure is None or len({c.requested_prompt_tokens for c in cells}) < 2:
        return None
    return Plot("ttft-over-prompt", "Time to first token over prompt length",
                "The same figures by prompt size. A flat line where longer prompts must cost more hints at a cache.",
                figure)


def _p95_ttft(cell: CellResult) -> float | None:
    return getattr(cell.distribution("ttft"), "p95", None)


def _by_prompt(cells: list[CellResult]) -> list[Series]:
    ordered = sorted(cells, key=lambda c: (c.requested_prompt_tokens, c.load.order))
    return [Series(f"{size:,} tokens in", list(group))
            for size, group in itertools.groupby(ordered, key=lambda c: c.requested_prompt_tokens)]


def _by_load(cells: list[CellResult]) -> list[Series]:
    ordered = sorted(cells, key=lambda c: (c.load.order, c.requested_prompt_tokens))
    return [Series(label, list(group)) for label, group in itertools.groupby(ordered, key=lambda c: c.load.label)]


def _figure(series: list[Series], failed: set[str], *, x: Callable[[CellResult], float | None],
            y: Callable[[CellResult], float | None], x_title: str, y_title: str,
            label: Callable[[CellResult], str] | None = None) -> dict[str, Any] | None:
    """A figure of lines with labelled markers, or None when no cell has both values."""
    data, xs, ys = [], [], []
    for index, line in enumerate(series):
        points = [(c, px, py) for c in line.cells if (px := x(c)) is not None and (py := y(c)) is not None]
        if not points:
            continue
        xs += [px for _, px, _ in points]
        ys += [py for _, _, py in points]
        symbol = SYMBOLS[index % len(SYMBOLS)]
        data.append({
            "type": "scatter", "mode": "lines+markers" + ("+text" if label else ""), "name": line.name,
            "meta": {"series": index},
            "x": [round(px, 3) for _, px, _ in points], "y": [round(py, 3) for _, _, py in points],
            "text": [label(c) if label else "" for c, _, _ in points], "textposition": "top center",
            "cliponaxis": False,
            "marker": {"size": 9, "symbol": [symbol + ("-open" if c.id in failed else "") for c, _, _ in points]},
            "customdata": [_hover_text(c, failed) for c, _, _ in points],
            "hovertemplate": "%{customdata}<extra></extra>"})
    if not data:
        return None
    return {"data": data, "layout": {"xaxis": _axis(x_title, xs), "yaxis": _axis(y_title, ys)}}


def _hover_text(cell: CellResult, failed: set[str]) -> str:
    def show(value: float | None, unit: str) -> str:
        return "–" if value is None else f"{value:,.1f} {unit}"

    ttft = cell.distribution("ttft")
    lines = [f"<b>{cell.id}</b>" + (" (audit failed)" if cell.id in failed else ""),
             f"in flight {show(cell.value('in_flight_requests'), '')}; asked for: {cell.load.label}",
             f"input tokens in flight {show(cell.value('in_flight_input_tokens'), '')}"]
    if ttft is not None:
        lines.append(f"TTFT P50 {show(ttft.p50, 'ms')}, P95 {show(ttft.p95, 'ms')}, P99 {show(ttft.p99, 'ms')}")
    lines.append(f"output {show(cell.value('output_throughput'), 'tokens/s')}")
    return "<br>".join(lines)


def _axis(title: str, values: list[float]) -> dict[str, Any]:
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
