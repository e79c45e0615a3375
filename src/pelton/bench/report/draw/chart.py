"""Draws a figure on a canvas: the same part of plotly's language that the plots use, in the page's light colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pelton.bench.report.draw.canvas import Canvas, Point
from pelton.bench.report.draw.scale import Scale
from pelton.bench.report.draw.theme import mix, theme
from pelton.bench.report.figure import HEIGHT, Figure, Trace

WIDTH = 960
LEFT, RIGHT, BOTTOM = 96, 30, 54
TITLE_PX, ROW_PX, CHAR_PX = 40, 22, 6.6
DASHES = {"dash": (9, 7), "dot": (2, 4)}
C = TypeVar("C", bound=Canvas)


@dataclass(frozen=True)
class Panel:
    """One pair of axes and where it lies."""

    x: Scale
    y: Scale
    left: float
    top: float
    width: float
    height: float
    traces: list[Trace]

    def at(self, x: float, y: float) -> Point:
        return self.left + self.x.place(x) * self.width, self.top + (1 - self.y.place(y)) * self.height


def draw(figure: Figure, title: str, make: Callable[[float, float, str], C]) -> C:
    """Draws on a canvas made with (width, height, background)."""
    rows = _legend_rows(figure)
    top = TITLE_PX + ROW_PX * len(rows) + 10
    plot_px = figure["layout"].get("height", HEIGHT) - 90
    colors = theme()
    canvas = make(WIDTH, top + plot_px + BOTTOM, colors["card"])
    canvas.text((16, 22), title, 16, colors["ink"], is_bold=True)
    _draw_legend(canvas, rows)
    panels = _panels(figure, top, plot_px)
    for panel in panels:
        _draw_frame(canvas, panel, figure, is_last=panel is panels[-1])
        for trace in panel.traces:
            (_draw_heatmap if trace["type"] == "heatmap" else _draw_scatter)(canvas, panel, trace)
    return canvas


def xs_of(trace: Trace) -> Sequence[float | str]:
    """A trace's places along x, whether given one by one or by a step."""
    return trace["x"] if "x" in trace else [trace["x0"] + i * trace["dx"] for i in range(len(trace["y"]))]


def _panels(figure: Figure, top: float, plot_px: float) -> list[Panel]:
    layout = figure["layout"]
    x = Scale(layout["xaxis"], [v for trace in figure["data"] for v in xs_of(trace)])
    panels = []
    for name in sorted((n for n in layout if n.startswith("yaxis")), key=lambda n: int(n[5:] or 1)):
        traces = [t for t in figure["data"] if t.get("yaxis", "y") == f"y{name[5:]}"]
        low, high = layout[name].get("domain", (0, 1))
        y = Scale(layout[name], [v for trace in traces for v in _ys_with_bars(trace)])
        panels.append(Panel(x, y, LEFT, top + (1 - high) * plot_px, WIDTH - LEFT - RIGHT, (high - low) * plot_px,
                            traces))
    return panels


def _ys_with_bars(trace: Trace) -> list[float | str]:
    bars = trace.get("error_y")
    if bars is None:
        return [y for y in trace["y"] if y is not None]
    return [end for y, up, down in zip(trace["y"], bars["array"], bars["arrayminus"]) for end in (y - down, y + up)]


def _ink(trace: Trace) -> str:
    colors = theme()
    ink = colors[f"s{trace['meta']['series'] % 8}"]
    return mix(ink, colors["card"], 0.75) if trace["meta"].get("is_soft") else ink


def _legend_rows(figure: Figure) -> list[list[tuple[float, Trace]]]:
    """(distance from the left, trace) in as many rows as they take; none for a single trace."""
    shown = [t for t in figure["data"] if t.get("showlegend", True) and t.get("name")]
    if len(figure["data"]) < 2:
        return []
    rows: list[list[tuple[float, Trace]]] = []
    at = float(WIDTH)
    for trace in shown:
        width = 46 + CHAR_PX * len(trace["name"])
        if at + width > WIDTH - RIGHT:
            rows.append([])
            at = float(LEFT)
        rows[-1].append((at, trace))
        at += width
    return rows


def _draw_legend(canvas: Canvas, rows: list[list[tuple[float, Trace]]]) -> None:
    for number, row in enumerate(rows):
        y = TITLE_PX + ROW_PX * (number + 0.5)
        for x, trace in row:
            if "lines" in trace["mode"]:
                dash = DASHES.get(trace.get("line", {}).get("dash"), ())
                canvas.polyline([(x, y), (x + 24, y)], _ink(trace), 2, dash)
            if "markers" in trace["mode"]:
                _draw_marker(canvas, (x + 12, y), trace["marker"]["symbol"][0].removesuffix("-open"), _ink(trace))
            canvas.text((x + 30, y), trace["name"], 12, theme()["ink"])


def _draw_frame(canvas: Canvas, panel: Panel, figure: Figure, *, is_last: bool) -> None:
    """Windows, grid, ticks and titles of the axes."""
    colors = theme()
    bottom, right = panel.top + panel.height, panel.left + panel.width
    for shape in figure["layout"].get("shapes", ()):
        start, end = (panel.left + min(max(panel.x.place(shape[k]), 0), 1) * panel.width for k in ("x0", "x1"))
        canvas.rect(start, panel.top, end - start, panel.height, colors["window"])
    has_grid = panel.x.kind != "category"
    for value, label in panel.x.ticks:
        x = panel.left + panel.x.place(value) * panel.width
        if has_grid:
            canvas.polyline([(x, panel.top), (x, bottom)], colors["grid"], 1)
        if is_last:
            canvas.text((x, bottom + 14), label, 12, colors["ink"], anchor="middle")
    for value, label in panel.y.ticks:
        y = panel.top + (1 - panel.y.place(value)) * panel.height
        if has_grid:
            canvas.polyline([(panel.left, y), (right, y)], colors["grid"], 1)
        canvas.text((panel.left - 8, y), label, 12, colors["ink"], anchor="end")
    canvas.polyline([(panel.left, panel.top), (panel.left, bottom), (right, bottom)], colors["line"], 1)
    titles = panel.y.title.split("<br>")
    for number, title in enumerate(titles):
        canvas.text((18 - 15 * (len(titles) - 1) / 2 + 15 * number, panel.top + panel.height / 2), title, 12,
                    colors["soft"], anchor="middle", is_upright=True)
    if is_last:
        canvas.text((panel.left + panel.width / 2, bottom + 38), panel.x.title, 12.5, colors["soft"], anchor="middle")


def _draw_scatter(canvas: Canvas, panel: Panel, trace: Trace) -> None:
    ink = _ink(trace)
    points = [panel.at(x, y) for x, y in zip(xs_of(trace), trace["y"]) if y is not None]
    style = trace.get("line", {})
    if "lines" in trace["mode"] and len(points) > 1:
        path = _steps(points) if style.get("shape") == "hv" else points
        canvas.polyline(path, ink, 1.5 if trace["meta"].get("is_soft") else 2, DASHES.get(style.get("dash"), ()))
    if "error_y" in trace:
        _draw_error_bars(canvas, panel, trace, ink)
    if "markers" in trace["mode"]:
        for point, symbol in zip(points, trace["marker"]["symbol"]):
            _draw_marker(canvas, point, symbol, ink)
    if "text" in trace["mode"]:
        for (x, y), text in zip(points, trace["text"]):
            canvas.text((x - 7, y - 9), text, 11, theme()["soft"], anchor="end")


def _steps(points: Sequence[Point]) -> list[Point]:
    """Level to the next point's place, then to its height."""
    path = [points[0]]
    for (_, y), after in itertools.pairwise(points):
        path += [(after[0], y), after]
    return path


def _draw_error_bars(canvas: Canvas, panel: Panel, trace: Trace, ink: str) -> None:
    bars = trace["error_y"]
    for x, y, up, down in zip(trace["x"], trace["y"], bars["array"], bars["arrayminus"]):
        for end in (y + up, y - down):
            if end != y:
                across, height = panel.at(x, end)
                canvas.polyline([panel.at(x, y), (across, height)], ink, 1)
                canvas.polyline([(across - 3, height), (across + 3, height)], ink, 1)


def _draw_marker(canvas: Canvas, at: Point, symbol: str, ink: str) -> None:
    """Around `at`; a name ending in -open is hollow."""
    fill = theme()["card"] if symbol.endswith("-open") else ink
    name = symbol.removesuffix("-open")
    if name == "circle":
        canvas.circle(at, 4.5, fill, ink)
        return
    if name == "cross":
        for dx, dy in ((5, 0), (0, 5)):
            canvas.polyline([(at[0] - dx, at[1] - dy), (at[0] + dx, at[1] + dy)], ink, 3)
        return
    if name == "star":
        corners = [(math.pi * (i / 5 - 0.5), 6.5 if i % 2 == 0 else 2.8) for i in range(10)]
    else:
        count, first, radius = {"square": (4, math.pi / 4, 6), "diamond": (4, 0, 6), "hexagon": (6, 0, 5.5),
                                "triangle-up": (3, -math.pi / 2, 6), "triangle-down": (3, math.pi / 2, 6)}[name]
        corners = [(first + 2 * math.pi * i / count, radius) for i in range(count)]
    canvas.polygon([(at[0] + r * math.cos(a), at[1] + r * math.sin(a)) for a, r in corners], fill, ink)


def _draw_heatmap(canvas: Canvas, panel: Panel, trace: Trace) -> None:
    colors = theme()
    known = [z for row in trace["z"] for z in row if z is not None]
    low, span = min(known, default=0.0), (max(known, default=1.0) - min(known, default=0.0)) or 1.0
    width, height = panel.width / len(trace["x"]), panel.height / len(trace["y"])
    for i, (row, texts) in enumerate(zip(trace["z"], trace["text"])):
        for j, (z, text) in enumerate(zip(row, texts)):
            x, y = panel.left + j * width, panel.top + panel.height - (i + 1) * height
            if z is not None:
                canvas.rect(x + 1, y + 1, width - 2, height - 2, mix(colors["heat-high"], colors["heat-low"],
                                                                     (z - low) / span))
            canvas.text((x + width / 2, y + height / 2), text, 12, colors["ink"], anchor="middle")
