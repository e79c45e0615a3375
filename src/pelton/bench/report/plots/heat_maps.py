"""Heat maps over load and prompt length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from pelton.bench.report.cell_lines import hover_text
from pelton.bench.report.figure import Figure, Plot, digits
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult
from pelton.bench.table import number

KIND_TITLES = {"closed": "requests in flight (asked for)", "constant": "requests/s, evenly (asked for)",
               "poisson": "requests/s (asked for)", "gamma": "requests/s in bursts (asked for)"}
ROW_PX = 42


def make(view: ReportView) -> Plot | None:
    figures = {}
    groups = itertools.groupby(sorted((c for c in view.streamed if c.load.kind in KIND_TITLES and c.has_fixed_sizes),
                                      key=lambda c: (c.load.kind, c.load.burstiness or 0, c.requested_output_tokens)),
                               key=lambda c: (c.load.kind, c.load.burstiness, c.requested_output_tokens))
    for (kind, _, output_tokens), group in groups:
        cells = list(group)
        if len({c.requested_prompt_tokens for c in cells}) < 2 or len({_level(c) for c in cells}) < 2:
            continue
        end = f", {output_tokens:,} tokens out" if view.has_output_sizes else ""
        end += "" if kind == "closed" else f", {kind} arrivals"
        for title, get in (("TTFT P50 (ms)", _percentile("p50")), ("TTFT P95 (ms)", _percentile("p95")),
                           ("output tokens/s", _rate)):
            figures[title + end] = _figure(view, cells, get, KIND_TITLES[kind])
    return Plot("heat-maps", "Heat maps: load × prompt length",
                "The stronger the colour, the more, on a logarithmic scale. ✕ marks cells that failed the audit: do "
                "not read them. A percentile for which a cell has too few samples says how many it needs.",
                figures) if figures else None


Shown = tuple[float | None, str]


def _percentile(name: str) -> Callable[[CellResult], Shown]:
    def get(cell: CellResult) -> Shown:
        found = cell.distribution("ttft")
        if found is None:
            return None, "–"
        if name in found.missing:
            return None, f"needs {found.missing[name]} more"
        return found.value(name), number(found.value(name))

    return get


def _rate(cell: CellResult) -> Shown:
    value = cell.value("output_throughput")
    return value, number(value)


def _level(cell: CellResult) -> float:
    return cell.load.concurrency or cell.load.rate or 0


def _figure(view: ReportView, cells: Sequence[CellResult], get: Callable[[CellResult], Shown], title: str) -> Figure:
    levels = sorted({_level(c) for c in cells})
    sizes = sorted({c.requested_prompt_tokens for c in cells})
    at = {(_level(c), c.requested_prompt_tokens): c for c in cells}
    z, text, hover = [], [], []
    for size in sizes:
        row = [at.get((level, size)) for level in levels]
        shown = [(None, "") if c is None else get(c) for c in row]
        z.append([digits(math.log10(v)) if v is not None and v > 0 else None for v, _ in shown])
        text.append([t + (" ✕" if c is not None and view.failed(c) else "") for c, (_, t) in zip(row, shown)])
        hover.append(["" if c is None else hover_text(view, c) for c in row])
    data = {"type": "heatmap", "meta": {"series": 0}, "x": [f"{v:,g}" for v in levels], "y": [f"{v:,}" for v in sizes],
            "z": z, "text": text, "texttemplate": "%{text}", "customdata": hover, "xgap": 2, "ygap": 2,
            "hovertemplate": "%{customdata}<extra></extra>", "showscale": False}
    return {"data": [data], "layout": {
        "xaxis": {"title": {"text": title}, "type": "category"},
        "yaxis": {"title": {"text": "prompt tokens (asked for)"}, "type": "category"},
        "height": max(ROW_PX * len(sizes) + 90, 220)}}
