"""The frame of every page: style, data, plotly.js and script inside one HTML file that asks no network for anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import msgspec

from pelton.bench.report.figure import Plot

# The page may run its own scripts and nothing else: a browser refuses any request it would make.
POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
          "font-src data:")


def document(title: str, body: str, plots: Sequence[Plot]) -> str:
    """A whole page; `body` holds an element with the id of every plot."""
    here = files("pelton.bench.report")
    figures = msgspec.json.encode({p.id: list(p.figures.values()) for p in plots}).decode().replace("</", "<\\/")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{(here / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
<script>{_plotly() if plots else ""}</script>
<script type="application/json" id="figures">{figures}</script>
<script>{(here / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def plot_section(plot: Plot) -> str:
    """A plot's place under its heading, with a list to pick from where it has several figures."""
    name = escape(plot.title, quote=True)
    options = "".join(f"<option>{escape(text)}</option>" for text in plot.figures)
    picker = f'<label class="pick">Show <select data-plot="{plot.id}">{options}</select></label>'
    return (f'<section><h2>{escape(plot.title)}</h2><p class="caption">{escape(plot.caption)}</p>'
            f'{picker if len(plot.figures) > 1 else ""}'
            f'<div class="plot" id="{plot.id}" role="img" aria-label="{name}"></div></section>')


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")
