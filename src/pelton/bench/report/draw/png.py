"""A canvas of pixels, by Pillow: its wheels bring all they need, so no browser and no system library is asked for."""

from __future__ import annotations

import functools
import io
import itertools
import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from pelton.bench.report.draw.canvas import Anchor, Point

SCALE = 1.5  # pixels of the picture per pixel of the chart, for sharp text
OVERSAMPLING = 2  # Pillow's lines have hard edges; what is drawn larger and shrunk has soft ones
SPELLED = {"×": "x", "–": "-", "≤": "<=", "≥": ">=", "✕": "(!)", "µ": "u", "→": "->"}
FONTS = {False: ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"),
         True: ("DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf", "Arial Bold.ttf")}


class PngCanvas:
    """Draws into a picture."""

    def __init__(self, width: float, height: float, background: str) -> None:
        self._by = SCALE * OVERSAMPLING
        self._image = Image.new("RGB", (round(width * self._by), round(height * self._by)), background)
        self._draw = ImageDraw.Draw(self._image)

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        if width > 0 and height > 0:
            self._draw.rectangle([*self._at((x, y)), *self._at((x + width, y + height))], fill=fill)

    def polyline(self, points: Sequence[Point], color: str, width: float, dash: Sequence[float] = ()) -> None:
        for part in dashes(points, dash) if dash else [points]:
            self._draw.line([self._at(p) for p in part], fill=color, width=max(round(width * self._by), 1),
                            joint="curve")

    def polygon(self, points: Sequence[Point], fill: str, stroke: str) -> None:
        self._draw.polygon([self._at(p) for p in points], fill=fill, outline=stroke, width=round(1.5 * self._by))

    def circle(self, center: Point, radius: float, fill: str, stroke: str) -> None:
        (x, y), r = self._at(center), radius * self._by
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=stroke, width=round(1.5 * self._by))

    def text(self, at: Point, text: str, size: float, color: str, *, anchor: Anchor = "start",
             is_upright: bool = False, is_bold: bool = False) -> None:
        font, has_signs = _font(round(size * self._by), is_bold)
        if not has_signs:
            text = "".join(SPELLED.get(sign, sign) for sign in text)
        place = {"start": "lm", "middle": "mm", "end": "rm"}[anchor]
        if not is_upright:
            self._draw.text(self._at(at), text, fill=color, font=font, anchor=place)
            return
        left, top, right, bottom = font.getbbox(text)
        stamp = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4), 0)
        ImageDraw.Draw(stamp).text((stamp.width / 2, stamp.height / 2), text, fill=255, font=font, anchor="mm")
        turned = stamp.transpose(Image.Transpose.ROTATE_90)
        x, y = self._at(at)
        start = {"start": y - turned.height, "middle": y - turned.height / 2, "end": y}[anchor]
        self._image.paste(color, (round(x - turned.width / 2), round(start)), turned)

    def finish(self) -> bytes:
        size = (self._image.width // OVERSAMPLING, self._image.height // OVERSAMPLING)
        data = io.BytesIO()
        self._image.resize(size, Image.Resampling.BOX).save(data, "PNG")
        return data.getvalue()

    def _at(self, point: Point) -> Point:
        return point[0] * self._by, point[1] * self._by


def dashes(points: Sequence[Point], dash: Sequence[float]) -> Iterator[list[Point]]:
    """The drawn parts of a dashed line: lengths of `dash` drawn and left out in turn."""
    lengths = itertools.cycle(dash)
    left, is_drawn, part = next(lengths), True, [points[0]]
    for start, end in itertools.pairwise(points):
        while (span := math.dist(start, end)) > left:
            start = (start[0] + (end[0] - start[0]) * left / span, start[1] + (end[1] - start[1]) * left / span)
            if is_drawn:
                yield [*part, start]
            left, is_drawn, part = next(lengths), not is_drawn, [start]
        left -= span
        part.append(end)
    if is_drawn and len(part) > 1:
        yield part


@functools.cache
def _font(size: int, is_bold: bool) -> tuple[ImageFont.FreeTypeFont, bool]:
    """(a font of this size, whether it has all signs that plots use): a usual one, or the one Pillow brings."""
    for name in FONTS[is_bold]:
        try:
            return ImageFont.truetype(name, size), True
        except OSError:
            continue
    return ImageFont.load_default(size), False
