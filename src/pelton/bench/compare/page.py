"""A comparison as one HTML file: what changed first, then the sides beside each other."""

from __future__ import annotations

from html import escape
from typing import Any

from pelton.bench.compare.records import CellComparison, Comparison, Effect
from pelton.bench.compare.rules import show_change
from pelton.bench.compare.shown import FIGURES_OF, METHODS, extra_inputs, key_effects, remarks
from pelton.bench.report.document import document, plot_section
from pelton.bench.report.figure import SYMBOLS, Plot, digits
from pelton.bench.report.tables import facts
from pelton.bench.table import number

TAGS = {"better": "sound", "worse": "failure", "changed": "warning"}  # classes of the page's style


def render_comparison(comparison: Comparison) -> str:
    """The page as one HTML text."""
    plots = comparison_plots(comparison)
    names = ", ".join(side.name for side in comparison.sides[1:])
    body = "\n".join((
        _header(comparison, names), _rules(comparison), *map(plot_section, plots),
        *(_cell_section(cell, comparison) for cell in comparison.cells), _sides(comparison)))
    return document(f"{comparison.base.name} and {names}", body, plots)


def comparison_plots(comparison: Comparison) -> list[Plot]:
    """Those that the comparison has figures for."""
    return [plot for plot in (_side_by_side(comparison), _changes(comparison)) if plot is not None]


def _header(comparison: Comparison, names: str) -> str:
    notes = "".join(f'<li class="warning"><p>{escape(remark)}.</p></li>' for remark in remarks(comparison))
    said = [effect.says for cell in comparison.cells for effect in key_effects(cell)]
    tiles = "".join(f"<div><b>{said.count(word)}</b><span>{word}</span></div>"
                    for word in ("better", "worse", "no difference shown", "not known"))
    forced = '<p class="partial">Different workloads, compared all the same.</p>' if comparison.is_forced else ""
    return (f'<header><p class="over">pelton bench compare</p><h1>{escape(names)} against '
            f'{escape(comparison.base.name)}</h1>{forced}<div class="tiles">{tiles}</div></header>'
            f'<section><h2>Before reading</h2><ul class="findings">{notes}</ul></section>')


def _rules(comparison: Comparison) -> str:
    if not comparison.rules:
        return ""
    rows = "".join(
        f"<tr><th scope=row><code>{escape(r.rule)}</code></th>"
        f'<td><span class="verdict {"sound" if r.outcome == "passed" else "failure"}">{r.outcome}</span></td>'
        f"<td>{escape(r.other)} {escape(r.cell)}</td><td>{escape(r.reason)}</td></tr>" for r in comparison.rules)
    return f'<section><h2>Rules</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div></section>'


def _cell_section(cell: CellComparison, comparison: Comparison) -> str:
    rows = "".join(_effect_row(effect) for effect in key_effects(cell))
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in (
        "", comparison.base.name, cell.other, "change [95 % confidence]", ""))
    return (f"<section><h2>{escape(cell.label)}: {escape(cell.other)}</h2>"
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>')


def _effect_row(effect: Effect) -> str:
    says = effect.says if effect.change is not None or not effect.note else effect.note
    kind = TAGS.get(effect.says)
    text = f'<span class="verdict {kind}">{escape(says)}</span>' if kind else escape(says)
    return (f"<tr><th scope=row>{escape(effect.title)} ({escape(effect.unit)})</th><td>{number(effect.base)}</td>"
            f'<td>{number(effect.other)}</td><td title="{METHODS[effect.method]}">{escape(show_change(effect))}</td>'
            f"<td>{text}</td></tr>")


def _sides(comparison: Comparison) -> str:
    parts = []
    for side in comparison.sides:
        said = ", ".join(f"{cell} {verdict}" for cell, verdict in side.verdicts.items())
        parts.append(f"<h2>{escape(side.name)}</h2>" + facts([
            ("model", side.model), ("server", side.server), ("protocol", f"{side.protocol}, {side.endpoint}"),
            ("further fields of the requests", extra_inputs(side)), ("started", side.started_at), ("file", side.path),
            ("workload", side.workload), ("audit", said)]))
    return f"<section><h2>What was compared</h2>{''.join(parts)}</section>"


def _side_by_side(comparison: Comparison) -> Plot | None:
    """Every side's figures over the cells."""
    figures = {}
    for name, title, unit in _figure_names(comparison):
        lines = []
        for index, side in enumerate(comparison.sides):
            points = [(c.label, e.base if index == 0 else e.other) for c, e in _effects(comparison, name)
                      if c.other == (comparison.sides[1].name if index == 0 else side.name)]
            lines.append(_points(side.name, index, [p for p in points if p[1] is not None]))
        figures[title] = _figure(lines, f"{title} ({unit})")
    text = f"Each side's figure in each cell: {FIGURES_OF}."
    if len(comparison.sides) > 2:
        text += f" Those of {comparison.base.name} are what {comparison.sides[1].name} is held against."
    return Plot("side-by-side", "Side by side", text, figures) if figures else None


def _changes(comparison: Comparison) -> Plot | None:
    """Changes with their intervals; one that crosses 0 shows no difference."""
    figures = {}
    for name, title, _ in _figure_names(comparison):
        lines = []
        for index, side in enumerate(comparison.sides[1:], start=1):
            found = [(c, e) for c, e in _effects(comparison, name) if c.other == side.name and e.change is not None]
            trace = _points(side.name, index, [(c.label, 100 * e.change) for c, e in found])
            trace["error_y"] = {
                "type": "data", "symmetric": False,
                "array": [digits(0 if e.high is None else 100 * (e.high - e.change)) for _, e in found],
                "arrayminus": [digits(0 if e.low is None else 100 * (e.change - e.low)) for _, e in found]}
            lines.append(trace)
        if any(trace["x"] for trace in lines):
            figures[title] = _figure(lines, f"change against {comparison.base.name} (%)")
    return Plot("changes", "Changes", "Relative to the base, with 95 % confidence intervals where there are some. An "
                "interval that holds 0 shows no difference.", figures) if figures else None


def _figure_names(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(name, title, unit) of the key figures that any cell has, in their order."""
    found = {e.metric: (e.metric, e.title, e.unit) for cell in comparison.cells for e in key_effects(cell)}
    return list(found.values())


def _effects(comparison: Comparison, name: str) -> list[tuple[CellComparison, Effect]]:
    return [(cell, e) for cell in comparison.cells for e in key_effects(cell) if e.metric == name]


def _points(name: str, series: int, points: list[tuple[str, float]]) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers+lines", "name": name, "meta": {"series": series},
            "x": [label for label, _ in points], "y": [digits(value) for _, value in points],
            "marker": {"size": 9, "symbol": SYMBOLS[series % len(SYMBOLS)]}}


def _figure(traces: list[dict[str, Any]], title: str) -> dict[str, Any]:
    return {"data": [t for t in traces if t["x"]],
            "layout": {"xaxis": {"title": {"text": ""}, "type": "category"},
                       "yaxis": {"title": {"text": title}, "rangemode": "tozero"}}}
