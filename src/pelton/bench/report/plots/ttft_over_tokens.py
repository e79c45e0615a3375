"""P95 time to first token over the input tokens in flight."""

from __future__ import annotations

from pelton.bench.report.cell_lines import by_shape, cell_figure, load_mark, percentile_of
from pelton.bench.report.figure import Plot
from pelton.bench.report.view import ReportView


def make(view: ReportView) -> Plot | None:
    cells = view.streamed
    figures = {}
    for name in ("p95", "p50"):
        figure = cell_figure(view, by_shape(view, cells), x=lambda c: c.value("in_flight_input_tokens"),
                             y=percentile_of("ttft", name), label=load_mark,
                             x_title="input tokens in flight (mean, measured)",
                             y_title=f"{name.upper()} time to first token (ms)")
        if figure is not None:
            figures[name.upper()] = figure
    return Plot(
        "ttft-over-tokens", "Time to first token over input tokens in flight",
        "Each point is a cell; the mark above it is the load asked for (8: that many in flight; r2.5: requests a "
        "second). Across: measured requests in flight × true prompt tokens. Up: 95 of 100 requests had their first "
        "token within this time, with its confidence interval of 95 %. Hollow points failed the audit.",
        figures) if figures else None
