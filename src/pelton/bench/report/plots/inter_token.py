"""The pace of one stream over the requests in flight."""

from __future__ import annotations

from pelton.bench.report.cell_lines import by_shape, cell_figure, percentile_of
from pelton.bench.report.figure import Plot
from pelton.bench.report.view import ReportView

TITLES = {"itl": "Inter-token latency", "tpot": "Time per output token"}


def make(view: ReportView) -> Plot | None:
    """Inter-token latency, or time per output token where that is withheld."""
    cells = view.streamed
    metric = "itl" if any(c.distribution("itl") for c in cells) else "tpot"
    title = TITLES[metric]
    figures = {}
    for name in ("p50", "p95", "p99"):
        figure = cell_figure(view, by_shape(view, cells), x=lambda c: c.value("in_flight_requests"),
                             y=percentile_of(metric, name), x_title="requests in flight (mean, measured)",
                             y_title=f"{name.upper()} {title.lower()} (ms)")
        if figure is not None:
            figures[name.upper()] = figure
    return Plot("inter-token", f"{title} over requests in flight",
                "The pace of one stream once it runs: what each user sees.", figures) if figures else None
