"""The levels that a search tried, and what it found."""

from __future__ import annotations

from pelton.bench.audit import is_answer_sound
from pelton.bench.report.cell_lines import hover_text
from pelton.bench.report.figure import Plot, Trace, axis, digits, line
from pelton.bench.report.view import ReportView


def make(view: ReportView) -> Plot | None:
    search = view.result.search
    cells = {c.id: c for c in view.cells}
    steps = [] if search is None else [s for s in search.steps if s.cell in cells]
    if not steps:
        return None
    metric = "attainment" if view.result.analysis.goodput else "output_throughput"
    title = {"attainment": "requests within targets (%)", "output_throughput": "output throughput (tokens/s)"}[metric]
    unit = {"concurrency": "requests in flight", "request_rate": "requests/s"}[search.variable]
    data: list[Trace] = []
    points = sorted((s.level, cells[s.cell].value(metric) or 0.0, s) for s in steps)
    for series, passed, name, symbol in ((2, True, "passed", "circle"), (5, False, "did not", "cross")):
        found = [p for p in points if p[2].passed is passed]
        if found:
            data.append({"type": "scatter", "mode": "markers", "name": name, "meta": {"series": series},
                         "x": [digits(x) for x, _, _ in found], "y": [digits(y) for _, y, _ in found],
                         "cliponaxis": False, "marker": {"size": 11, "symbol": [
                             symbol + ("-open" if view.failed(cells[s.cell]) else "") for _, _, s in found]},
                         "customdata": [f"{hover_text(view, cells[s.cell])}<br>{s.reason}" for _, _, s in found],
                         "hovertemplate": "%{customdata}<extra></extra>"})
    is_sound = is_answer_sound(view.result)
    if search.best is not None and is_sound:
        ys = [y for _, y, _ in points]
        data.append(line("found", 7, [search.best] * 2, [min(ys), max(ys)], line={"dash": "dash"}) | {
            "meta": {"series": 7, "is_soft": True}})
    best = "nothing passed" if search.best is None else f"{search.best:,.4g} {unit}"
    state = f" Not sure yet: {search.caveat}." if search.caveat else ""
    if not is_sound:
        best, state = "no sound answer", f" The audit failed the cell of what was found, {best}.{state}"
    return Plot("search", f"Search: {best}", f"Asked for: {search.criterion}.{state}", {"": {
        "data": data, "layout": {"xaxis": axis(f"{unit} (asked for)", [x for x, _, _ in points]),
                                 "yaxis": axis(title, [y for _, y, _ in points])}}})
