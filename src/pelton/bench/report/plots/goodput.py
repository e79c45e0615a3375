"""How many requests kept the latency targets."""

from __future__ import annotations

from pelton.bench.report.cell_lines import by_shape, cell_figure, load_mark
from pelton.bench.report.figure import Plot
from pelton.bench.report.view import ReportView

UNITS = {"ttft": "TTFT", "tpot": "time per output token", "e2e_latency": "end-to-end latency",
         "ttft_scheduled": "TTFT from schedule", "e2e_latency_scheduled": "end-to-end latency from schedule"}


def make(view: ReportView) -> Plot | None:
    figures = {}
    for metric, title in (("attainment", "requests within targets (%)"), ("goodput", "goodput (requests/s)")):
        figure = cell_figure(view, by_shape(view, view.streamed), x=lambda c: c.value("request_throughput"),
                             y=lambda c, metric=metric: c.value(metric), label=load_mark,
                             x_title="requests answered in full (requests/s)", y_title=title)
        if figure is not None:
            figures[title] = figure
    targets = ", ".join(f"{UNITS.get(name, name)} at most {limit:g} ms"
                        for name, limit in view.result.analysis.goodput.items())
    return Plot("goodput", "Requests within latency targets",
                f"Targets: {targets}. A request counts only when it kept all of them; failed ones kept none.",
                figures) if figures else None
