"""How latencies are distributed: for every share of the samples the time within which they lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from itertools import pairwise

from pelton.bench.metrics.attainment import latency_ms
from pelton.bench.percentiles import percentile
from pelton.bench.report.figure import Plot, Trace, axis, line
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, RequestRecord

MOST_SAMPLES_DRAWN = 200
# Shares at which larger samples are drawn: every half per cent, and the tail finer.
SHARES = [p / 2 for p in range(1, 200)] + [99.7, 99.8, 99.9, 99.95, 99.99]


def _of(metric: str) -> Callable[[RequestRecord], Iterable[float]]:
    def get(record: RequestRecord) -> Iterable[float]:
        found = latency_ms(record, metric)
        return () if found is None else (found,)

    return get


def _gaps(record: RequestRecord) -> Iterable[float]:
    return ((b - a) / 1e3 for a, b in pairwise(record.content_us))


METRICS = (("ttft", "Time to first token", _of("ttft")), ("itl", "Inter-token latency", _gaps),
           ("tpot", "Time per output token", _of("tpot")), ("e2e_latency", "End-to-end latency", _of("e2e_latency")))


def make(view: ReportView) -> Plot | None:
    figures = {}
    for metric, title, samples_of in METRICS:
        for shape, group in itertools.groupby(view.streamed, key=view.shape):
            figure = _figure(view, list(group), metric, f"{title.lower()} (ms)", samples_of)
            if figure is not None:
                figures[f"{title}, {shape}"] = figure
    return Plot("distributions", "Distribution of latencies",
                "For each time, the share of the samples that took no longer; a steep line is an even latency, a long "
                f"foot to the right a tail. Lines of more than {MOST_SAMPLES_DRAWN} samples are drawn through every "
                "half per cent and finer in the tail; no sample is left out of the shares.",
                figures) if figures else None


def _figure(view: ReportView, cells: list[CellResult], metric: str, title: str,
            samples_of: Callable[[RequestRecord], Iterable[float]]) -> dict | None:
    data: list[Trace] = []
    for series, cell in enumerate(cells):
        if cell.distribution(metric) is None:
            continue
        ordered = sorted(value for record in view.good(cell) for value in samples_of(record))
        xs, ys = curve(ordered)
        name = cell.load.label + (" (audit failed)" if view.failed(cell) else "")
        data.append(line(name, series, xs, ys, line={"shape": "hv"} if len(ordered) <= MOST_SAMPLES_DRAWN else {},
                         hovertemplate="%{y:.1f} % within %{x:,.4g} ms"))
    if not data:
        return None
    return {"data": data, "layout": {"xaxis": axis(title, [x for trace in data for x in trace["x"]]),
                                     "yaxis": {"title": {"text": "samples within (%)"}, "range": [0, 101]}}}


def curve(ordered: list[float]) -> tuple[list[float], list[float]]:
    """(times, per cent within) of sorted samples: every sample, or of many the shares above and both ends."""
    if len(ordered) <= MOST_SAMPLES_DRAWN:
        return ordered, [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
    shares = [share for share in SHARES if share < 100 * (1 - 1 / len(ordered))]
    return ([ordered[0], *(percentile(ordered, share) for share in shares), ordered[-1]], [0.0, *shares, 100.0])
