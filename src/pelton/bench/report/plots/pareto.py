"""Throughput of all against the speed of one user, with the hardware's limit where it is known."""

from __future__ import annotations

import statistics

from pelton.bench.report.cell_lines import by_shape, cell_figure, load_mark, percentile_of
from pelton.bench.report.figure import Figure, Plot, Trace, axis, line
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult
from pelton.physics import Roofline

_speed = percentile_of("decode_rate", "p50")


def make(view: ReportView) -> Plot | None:
    cells = [c for c in view.streamed if _speed(c) is not None and c.value("output_throughput")]
    series = by_shape(view, cells)
    figure = cell_figure(view, series, x=_speed, y=lambda c: c.value("output_throughput"), label=load_mark,
                         x_title="median output speed of one user (tokens/s)",
                         y_title="output throughput of all users (tokens/s)")
    if figure is None:
        return None
    caption = ("Up and to the right is better: how much the server gives in all, and how fast each user sees it. "
               "Each point is a cell, marked with its load.")
    sound = [(p.value, c.value("output_throughput")) for c in cells
             if not view.failed(c) and (p := _speed(c)) is not None]
    best = frontier(sound)
    if len(best) > 1 and len(series) > 1:
        figure["data"].append(line("best of all", 7, *zip(*best), line={"dash": "dash"}) | {
            "meta": {"series": 7, "is_soft": True}})
        caption += " The dashed line joins the cells that no other beats in both."
    if view.roofline is not None:
        figure["data"] += [_limit(view.roofline, i, view, found.name, found.cells) for i, found in enumerate(series)]
        caption += (f" Dotted: what the {view.roofline.hardware.name}'s memory and arithmetic allow for decoding "
                    "alone, prompts free.")
    _widen(figure)
    return Plot("pareto", "Throughput against the speed of one user", caption, {"": figure})


def _widen(figure: Figure) -> None:
    """Axes that hold the limits too."""
    for name in ("x", "y"):
        title = figure["layout"][f"{name}axis"]["title"]["text"]
        figure["layout"][f"{name}axis"] = axis(title, [v for trace in figure["data"] for v in trace[name]])


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other reaches in both coordinates, from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def _limit(roofline: Roofline, series: int, view: ReportView, name: str, cells: list[CellResult]) -> Trace:
    """Batches of 1 to the largest that was in flight, each sequence at its mean context."""
    most = max(c.peak_in_flight for c in cells)
    context = statistics.fmean(r.prompt_tokens + r.output_tokens / 2 for c in cells for r in view.good(c))
    sizes = sorted({*(2**k for k in range(most.bit_length())), max(most, 1)})
    rates = [roofline.decode_tokens_per_s(n, context) for n in sizes]
    return line(f"limit, {name}", series, [rate / n for rate, n in zip(rates, sizes)], rates,
                line={"dash": "dot"}) | {"meta": {"series": series, "is_soft": True}}
