"""The server's own metrics over the whole run, each to be chosen."""

from __future__ import annotations

from itertools import pairwise

from pelton.bench.report.figure import Figure, Plot, line, thin_out
from pelton.bench.report.view import ReportView
from pelton.bench.results import Series

MOST_SERIES, MOST_POINTS = 40, 240
COUNTER_ENDS = ("_total", "_sum", "_count")


def make(view: ReportView) -> Plot | None:
    changing = [s for s in view.result.series if s.source == "server" and len(set(s.values)) > 1]
    # Gauges first: a counter says little beside what the client has measured itself.
    changing.sort(key=lambda s: (s.name.endswith(COUNTER_ENDS), s.name))
    figures = {_name(s): _figure(s) for s in changing[:MOST_SERIES]}
    left_out = (f" {len(changing) - MOST_SERIES} more changed during the run; they are in results.json."
                if len(changing) > MOST_SERIES else "")
    return Plot("server-metrics", "The server's own metrics",
                f"Read from the server while the load ran, on the clock of the requests. Counters are shown as their "
                f"increase per second; those that never changed are left out.{left_out}", figures) if figures else None


def _name(series: Series) -> str:
    labels = ", ".join(f'{k}="{v}"' for k, v in series.labels.items())
    return f"{series.name}{{{labels}}}" if labels else series.name


def _figure(series: Series) -> Figure:
    xs, ys = [at / 1e6 for at in series.at_us], list(series.values)
    unit = series.unit or "value"
    if series.name.endswith(COUNTER_ENDS):
        points = [(b, (w - v) / (b - a)) for (a, v), (b, w) in pairwise(zip(xs, ys)) if b > a and w >= v]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        unit = f"{unit} per second"
    xs, ys = thin_out(xs, ys, MOST_POINTS)
    return {"data": [line(series.name, 0, (), ys, x=[round(x, 3) for x in xs],
                           hovertemplate="%{y:,.4g} at %{x:.1f} s<extra></extra>")],
            "layout": {"xaxis": {"title": {"text": "time since the run began (s)"}},
                       "yaxis": {"title": {"text": unit}, "rangemode": "tozero"}}}
