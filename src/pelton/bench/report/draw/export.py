"""All plots of a report as SVG or PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pelton.bench.report.draw.canvas import SvgCanvas
from pelton.bench.report.draw.chart import draw
from pelton.bench.report.figure import Plot

PictureFormat = Literal["svg", "png"]


def pictures(plots: Sequence[Plot], kind: PictureFormat) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every figure; the one a plot shows first has the plot's own name."""
    for plot in plots:
        for number, (name, figure) in enumerate(plot.figures.items()):
            title = f"{plot.title}: {name}" if name else plot.title
            yield picture_name(plot, kind, name if number else ""), draw(figure, title, _canvas(kind)).finish()


def picture_name(plot: Plot, kind: PictureFormat, figure: str = "") -> str:
    """The file of one of a plot's figures."""
    words = re.sub(r"[^a-z0-9.]+", "-", figure.lower()).strip("-.")
    return f"{plot.id}-{words}.{kind}" if words else f"{plot.id}.{kind}"


def _canvas(kind: PictureFormat) -> type:
    if kind == "svg":
        return SvgCanvas
    from pelton.bench.report.draw.png import PngCanvas

    return PngCanvas
