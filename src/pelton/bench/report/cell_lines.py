"""Plots in which every cell is a point: lines through cells of one kind, with confidence intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pelton.bench.report.figure import SYMBOLS, Figure, Trace, axis, digits
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, Percentile

Value = float | Percentile | None


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    cells: list[CellResult]


def by_shape(view: ReportView, cells: Iterable[CellResult]) -> list[Series]:
    """One line per prompt and output size, along the load; loads of another kind on lines of their own."""
    ordered = sorted(cells, key=lambda c: (c.requested_prompt_tokens, c.requested_output_tokens, c.load.order))
    has_kinds = len({c.load.kind for c in ordered}) > 1

    def name(cell: CellResult) -> str:
        return view.shape(cell) + (f", {cell.load.kind}" if has_kinds else "")

    return [Series(found, list(group)) for found, group in itertools.groupby(ordered, key=name)]


def by_load(view: ReportView, cells: Iterable[CellResult]) -> list[Series]:
    """One line per load (and output size), along the prompt size."""
    ordered = sorted(cells, key=lambda c: (c.load.order, c.requested_output_tokens, c.requested_prompt_tokens))

    def name(cell: CellResult) -> str:
        return cell.load.label + (f", {cell.requested_output_tokens:,} out" if view.has_output_sizes else "")

    return [Series(found, list(group)) for found, group in itertools.groupby(ordered, key=name)]


def percentile_of(metric: str, name: str) -> Callable[[CellResult], Percentile | None]:
    """A cell's percentile with its interval; none where it is withheld."""
    def get(cell: CellResult) -> Percentile | None:
        found = cell.distribution(metric)
        return None if found is None else found.percentiles.get(name)

    return get


def load_mark(cell: CellResult) -> str:
    """The load asked for, short: 8 for eight in flight, r2.5 for that many requests a second."""
    return cell.load.key.removeprefix("c")


def cell_figure(view: ReportView, series: list[Series], *, x: Callable[[CellResult], Value],
                y: Callable[[CellResult], Value], x_title: str, y_title: str,
                label: Callable[[CellResult], str] | None = None) -> Figure | None:
    """Lines with labelled markers, or None when no cell has both values. Cells with a failed audit are hollow.

    Values that are percentiles get their 95 % confidence interval as an error bar; an open end has none.
    """
    data: list[Trace] = []
    xs, ys = [], []
    for index, found in enumerate(series):
        points = [(c, px, py) for c in found.cells if (px := x(c)) is not None and (py := y(c)) is not None]
        if not points:
            continue
        across, up = [_middle(px) for _, px, _ in points], [_middle(py) for _, _, py in points]
        xs += across
        ys += [end for _, _, py in points for end in _ends(py)]
        symbol = SYMBOLS[index % len(SYMBOLS)]
        trace: Trace = {
            "type": "scatter", "mode": "lines+markers" + ("+text" if label else ""), "name": found.name,
            "meta": {"series": index}, "x": [digits(v) for v in across], "y": [digits(v) for v in up],
            "text": [label(c) if label else "" for c, _, _ in points], "textposition": "top left",
            "cliponaxis": False,
            "marker": {"size": 9, "symbol": [symbol + ("-open" if view.failed(c) else "") for c, _, _ in points]},
            "customdata": [hover_text(view, c) for c, _, _ in points],
            "hovertemplate": "%{customdata}<extra></extra>"}
        if any(isinstance(py, Percentile) for _, _, py in points):
            trace["error_y"] = error_bars([py for _, _, py in points])
        data.append(trace)
    if not data:
        return None
    return {"data": data, "layout": {"xaxis": axis(x_title, xs), "yaxis": axis(y_title, ys)}}


def _middle(value: float | Percentile) -> float:
    return value.value if isinstance(value, Percentile) else value


def _ends(value: float | Percentile) -> list[float]:
    if not isinstance(value, Percentile):
        return [value]
    return [v for v in (value.low, value.value, value.high) if v is not None]


def error_bars(values: Sequence[float | Percentile]) -> dict[str, object]:
    """The intervals of percentiles as plotly.js wants them."""
    found = [v if isinstance(v, Percentile) else Percentile(value=v, low=None, high=None) for v in values]
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 3,
            "array": [digits(0.0 if p.high is None else p.high - p.value) for p in found],
            "arrayminus": [digits(0.0 if p.low is None else p.value - p.low) for p in found]}


def hover_text(view: ReportView, cell: CellResult) -> str:
    """What stands under the pointer."""
    def show(value: float | None, unit: str) -> str:
        return "–" if value is None else f"{value:,.1f} {unit}"

    ttft = cell.distribution("ttft")
    lines = [f"<b>{cell.id}</b> (audit: {view.verdicts[cell.id]})",
             f"in flight {show(cell.value('in_flight_requests'), '')}; asked for: {cell.load.label}",
             f"input tokens in flight {show(cell.value('in_flight_input_tokens'), '')}"]
    if ttft is not None:
        lines.append(f"TTFT P50 {show(ttft.p50, 'ms')}, P95 {show(ttft.p95, 'ms')}, P99 {show(ttft.p99, 'ms')}")
    lines.append(f"output {show(cell.value('output_throughput'), 'tokens/s')}")
    return "<br>".join(lines)
