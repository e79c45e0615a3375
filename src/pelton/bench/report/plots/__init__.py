"""The report's plots, one a file: each has a `make` from the result to a plot, or to none where it has nothing to show.

A new plot is a new file and a place in the order below.
"""

from __future__ import annotations

from pelton.bench.report.figure import Plot
from pelton.bench.report.plots import (
    distributions,
    goodput,
    heat_maps,
    inter_token,
    pareto,
    search,
    server_metrics,
    stages,
    throughput,
    timeline,
    ttft_over_prompt,
    ttft_over_tokens,
)
from pelton.bench.report.view import ReportView
from pelton.bench.results import RunResult

ORDER = (search, ttft_over_tokens, heat_maps, pareto, throughput, inter_token, ttft_over_prompt, goodput,
         distributions, timeline, stages, server_metrics)


def make_plots(result: RunResult) -> list[Plot]:
    """All plots that the result has figures for, in the order of the report."""
    view = ReportView(result)
    plots = (module.make(view) for module in ORDER)
    return [plot for plot in plots if plot is not None]
