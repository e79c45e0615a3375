"""What a chart is drawn on: points in pixels from the top left corner, colours as #rrggbb."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal, Protocol

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
FONT = "system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"


class Canvas(Protocol):
    """Lines, shapes and text; later ones lie over earlier ones."""

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None: ...

    def polyline(self, points: Sequence[Point], color: str, width: float, dash: Sequence[float] = ()) -> None:
        """`dash`: lengths drawn and left out in turn; none: a whole line."""

    def polygon(self, points: Sequence[Point], fill: str, stroke: str) -> None: ...

    def circle(self, center: Point, radius: float, fill: str, stroke: str) -> None: ...

    def text(self, at: Point, text: str, size: float, color: str, *, anchor: Anchor = "start",
             is_upright: bool = False, is_bold: bool = False) -> None:
        """`at` is where the text's middle line begins, has its middle or ends; upright text runs from below."""


class SvgCanvas:
    """Writes SVG 1.1."""

    def __init__(self, width: float, height: float, background: str) -> None:
        self._head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
                      f'viewBox="0 0 {width:g} {height:g}" font-family="{FONT}">')
        self._parts: list[str] = []
        self.rect(0, 0, width, height, background)

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self._parts.append(f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{fill}"/>')

    def polyline(self, points: Sequence[Point], color: str, width: float, dash: Sequence[float] = ()) -> None:
        dashes = f' stroke-dasharray="{" ".join(map(_n, dash))}"' if dash else ""
        self._parts.append(f'<polyline points="{_path(points)}" fill="none" stroke="{color}" '
                           f'stroke-width="{_n(width)}" stroke-linejoin="round"{dashes}/>')

    def polygon(self, points: Sequence[Point], fill: str, stroke: str) -> None:
        self._parts.append(f'<polygon points="{_path(points)}" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>')

    def circle(self, center: Point, radius: float, fill: str, stroke: str) -> None:
        self._parts.append(f'<circle cx="{_n(center[0])}" cy="{_n(center[1])}" r="{_n(radius)}" fill="{fill}" '
                           f'stroke="{stroke}" stroke-width="1.5"/>')

    def text(self, at: Point, text: str, size: float, color: str, *, anchor: Anchor = "start",
             is_upright: bool = False, is_bold: bool = False) -> None:
        turn = f' transform="rotate(-90 {_n(at[0])} {_n(at[1])})"' if is_upright else ""
        weight = ' font-weight="600"' if is_bold else ""
        self._parts.append(f'<text x="{_n(at[0])}" y="{_n(at[1])}" dy="0.35em" font-size="{_n(size)}" fill="{color}" '
                           f'text-anchor="{anchor}"{weight}{turn}>{escape(text)}</text>')

    def finish(self) -> bytes:
        return "\n".join([self._head, *self._parts, "</svg>\n"]).encode()


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
