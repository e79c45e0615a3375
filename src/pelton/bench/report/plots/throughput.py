"""Output throughput over the requests in flight."""

from __future__ import annotations

from pelton.bench.report.cell_lines import by_shape, cell_figure
from pelton.bench.report.figure import Plot
from pelton.bench.report.view import ReportView


def make(view: ReportView) -> Plot | None:
    series = by_shape(view, view.streamed)
    figures = {}
    for metric, name in (("output_throughput", "whole run"), ("steady_output_throughput", "steady window")):
        figure = cell_figure(view, series, x=lambda c: c.value("in_flight_requests"),
                             y=lambda c, metric=metric: c.value(metric), x_title="requests in flight (mean, measured)",
                             y_title="output throughput (tokens/s)")
        if figure is not None:
            figures[name] = figure
    return Plot("throughput", "Output throughput over requests in flight",
                "Generated tokens of all requests together: over the cell's whole wall time, its run-out included, or "
                "over the window in which the load was full.", figures) if figures else None
