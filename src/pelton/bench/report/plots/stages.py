"""The stages of a piecewise load beside each other, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pelton.bench.report.cell_lines import error_bars
from pelton.bench.report.figure import SYMBOLS, Figure, Plot, Trace, digits
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, Percentile, StageResult

Value = float | Percentile | None
LATENCIES = (("ttft", "time to first token"), ("itl", "inter-token latency"),
             ("e2e_latency_scheduled", "latency from schedule"))
RATES = (("steady_output_throughput", "output tokens/s"), ("in_flight_requests", "requests in flight (mean)"))


def make(view: ReportView) -> Plot | None:
    """One figure for each quantity; of several such cells, for each of them."""
    staged = [cell for cell in view.cells if cell.stages]
    figures: dict[str, Figure] = {}
    for cell in staged:
        end = f", {cell.id}" if len(staged) > 1 else ""
        for metric, title in LATENCIES:
            traces = [_trace(cell, name.upper(), number, _percentile(metric, name))
                      for number, name in enumerate(("p50", "p95"))]
            _add(figures, f"{title}{end}", f"{title} (ms)", traces)
        for metric, title in RATES:
            _add(figures, f"{title}{end}", title, [_trace(cell, title, 2, lambda s, metric=metric: s.value(metric))])
    return Plot("stages", "Stages of the load",
                "In their order: latencies of the requests that began in each, with intervals of 95 % confidence; "
                "rates over its time.", figures) if figures else None


def _percentile(metric: str, name: str) -> Callable[[StageResult], Percentile | None]:
    def get(stage: StageResult) -> Percentile | None:
        found = stage.distribution(metric)
        return None if found is None else found.percentiles.get(name)

    return get


def _trace(cell: CellResult, name: str, series: int, get: Callable[[StageResult], Value]) -> Trace:
    points = [(stage.name, value) for stage in cell.stages if (value := get(stage)) is not None]
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers+lines", "name": name, "meta": {"series": series},
        "x": [stage for stage, _ in points],
        "y": [digits(v.value if isinstance(v, Percentile) else v) for _, v in points],
        "marker": {"size": 9, "symbol": [SYMBOLS[series % len(SYMBOLS)]] * len(points)}}
    if any(isinstance(v, Percentile) for _, v in points):
        trace["error_y"] = error_bars([v for _, v in points])
    return trace


def _add(figures: dict[str, Figure], key: str, title: str, traces: list[Trace]) -> None:
    drawn = [trace for trace in traces if trace["x"]]
    if drawn:
        figures[key] = {"data": drawn, "layout": {"xaxis": {"title": {"text": "stage"}, "type": "category"},
                                                  "yaxis": {"title": {"text": title}, "rangemode": "tozero"}}}
