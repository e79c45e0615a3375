"""Pictures of plots made without a browser, and the formats of `pelton bench report`."""

import io
import math
import random
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from helpers.bench import later, request, result, spec
from PIL import Image

from pelton.bench.files import read_result, write_result
from pelton.bench.options import ReportOptions
from pelton.bench.report.command import run_report
from pelton.bench.report.draw.canvas import SvgCanvas
from pelton.bench.report.draw.chart import LEFT, RIGHT, WIDTH, draw
from pelton.bench.report.draw.export import pictures
from pelton.bench.report.draw.png import SCALE, PngCanvas, dashes
from pelton.bench.report.draw.scale import nice_ticks
from pelton.bench.report.draw.theme import mix, rgb, theme
from pelton.bench.report.markdown import summary
from pelton.bench.report.page import render
from pelton.bench.report.plots import make_plots
from pelton.bench.report.view import ReportView
from pelton.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made():
    return result([(spec(concurrency=c, prompt_tokens=size, num_requests=20), [
        later(request(server_prompt_tokens=size, client_prompt_tokens=size), 17_001 * (i // c), index=i)
        for i in range(20)]) for c in (1, 2) for size in (16, 900)])


def line_figure(xs, ys, **more):
    trace = {"type": "scatter", "mode": "lines", "name": "one", "meta": {"series": 3}, "x": xs, "y": ys, **more}
    return {"data": [trace],
            "layout": {"xaxis": {"title": {"text": "across"}, "range": [0, 10]},
                       "yaxis": {"title": {"text": "up & <down>"}, "range": [0, 100]}}}


def lines_of(svg, color):
    return [[tuple(map(float, p.split(","))) for p in e.get("points").split()]
            for e in ElementTree.fromstring(svg).iter(f"{SVG}polyline") if e.get("stroke") == color]


def test_every_figure_is_drawn(made):
    plots = make_plots(made)
    drawn = dict(pictures(plots, "svg"))
    assert len(drawn) == sum(len(p.figures) for p in plots)
    assert {f"{p.id}.svg" for p in plots} <= set(drawn)
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        assert root.get("width") == str(WIDTH)
        shapes = [e for e in root.iter() if e.tag in (f"{SVG}polyline", f"{SVG}polygon", f"{SVG}circle", f"{SVG}rect")]
        assert len(shapes) > 3, name
    assert all(re.fullmatch(r"[a-z0-9.-]+\.svg", name) for name in drawn)


def test_lines_lie_where_their_values_are():
    svg = draw(line_figure([0, 5, 10], [0, 100, 50]), "a line", SvgCanvas).finish()
    ((start, middle, end),) = lines_of(svg, theme()["s3"])
    across, height = WIDTH - LEFT - RIGHT, start[1] - middle[1]
    assert (start[0], middle[0], end[0]) == pytest.approx((LEFT, LEFT + across / 2, LEFT + across))
    assert start[1] - end[1] == pytest.approx(height / 2)


def test_steps_stay_level_until_the_next_value():
    svg = draw(line_figure([0, 10], [20, 80], line={"shape": "hv"}), "steps", SvgCanvas).finish()
    ((a, b, c),) = lines_of(svg, theme()["s3"])
    assert a[1] == b[1] != c[1]
    assert b[0] == c[0] != a[0]


def test_text_cannot_become_markup():
    svg = draw(line_figure([0, 1], [0, 1]), "<script>alert(1)</script>", SvgCanvas).finish()
    texts = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "<script>alert(1)</script>" in texts
    assert "up & <down>" in texts


def test_png_shows_the_same_line():
    canvas = draw(line_figure([0, 10], [50, 50]), "level", PngCanvas)
    picture = Image.open(io.BytesIO(canvas.finish())).convert("RGB")
    assert picture.width == round(WIDTH * SCALE)
    ink = rgb(theme()["s3"])
    inked = [(x, y) for x in range(0, picture.width, 10) for y in range(picture.height)
             if picture.getpixel((x, y)) == ink]
    assert min(x for x, _ in inked) == pytest.approx(LEFT * SCALE, abs=10)
    assert max(x for x, _ in inked) == pytest.approx((WIDTH - RIGHT) * SCALE, abs=10)
    assert len({y for _, y in inked}) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_dashes_draw_their_share_of_the_line(seed):
    rng = random.Random(seed)
    points = [(rng.uniform(0, 500), rng.uniform(0, 500)) for _ in range(6)]
    whole = sum(math.dist(a, b) for a, b in pairwise(points))
    drawn = sum(math.dist(a, b) for part in dashes(points, (3, 1)) for a, b in pairwise(part))
    assert drawn == pytest.approx(0.75 * whole, abs=3)


@pytest.mark.parametrize(("low", "high", "ticks"), [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0, 0.7, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), (5, 5, [5]),
    (0, 130_000, [0, 20_000, 40_000, 60_000, 80_000, 100_000, 120_000])])
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high, 7) == ticks


def test_colours_come_from_the_page():
    assert {f"s{i}" for i in range(8)} <= set(theme())
    assert mix("#000000", "#ffffff", 0.25) == "#bfbfbf"


def test_all_formats(made, tmp_path, capsys):
    write_result(made, tmp_path)
    output = tmp_path / "out" / "sweep.html"
    output.parent.mkdir()
    assert run_report(ReportOptions(results=str(tmp_path), output=str(output),
                                    format=("html", "markdown", "svg", "png", "json", "csv"))) == 0
    names = {p.name for p in output.parent.iterdir()}
    assert names == {"sweep.html", "sweep.md", "sweep.json", "requests.csv", "cells.csv", "sweep-plots"}
    assert capsys.readouterr().out.split() == [str(output.parent / name) for name in (
        "sweep.html", "sweep.md", "sweep.json", "requests.csv", "cells.csv", "sweep-plots")]
    assert read_result(output.with_suffix(".json")).cells == made.cells
    suffixes = [p.suffix for p in (output.parent / "sweep-plots").iterdir()]
    assert suffixes.count(".svg") == suffixes.count(".png") > 8


def test_markdown_has_findings_cells_and_pictures_that_are_there(made, tmp_path):
    write_result(made, tmp_path)
    run_report(ReportOptions(results=str(tmp_path), format=("markdown",)))
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Audit") < text.index("`too_few_samples`") < text.index("## Cells")
    assert sum(line.startswith("| `c") for line in text.splitlines()) == 4
    linked = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(linked) == len(make_plots(made))
    assert all((tmp_path / path).is_file() for path in linked)


def test_partial_results_are_marked():
    cells = [(spec(num_requests=20), [later(request(), 17_001 * i, index=i) for i in range(5)])]
    partial = result(cells, status="partial", stop_reason="interrupted", skipped_cells=["c2-p16-o4"])
    text = summary(ReportView(partial), [])
    assert "**Partial result: interrupted.**" in text
    assert "| `c1-p16-o4` (partial) |" in text
    page = render(partial)
    assert "Partial result: interrupted" in page
    assert 'c1-p16-o4 <span class="asked">partial</span>' in page


def test_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="format must be some of html"):
        ReportOptions(results="x", format=("pdf",))
