"""A comparison as Markdown, for a pull request or a summary page of a CI system."""

from __future__ import annotations

from pelton.bench.compare.records import Comparison
from pelton.bench.compare.rules import show_change
from pelton.bench.compare.shown import extra_inputs, key_effects, remarks
from pelton.bench.table import number


def to_markdown(comparison: Comparison) -> str:
    """Sides, remarks, rules, and a table for each cell and side."""
    lines = ["# Benchmark comparison", "", "| | model | server | protocol | further fields | started | workload |",
             "|---|---|---|---|---|---|---|"]
    for side in comparison.sides:
        lines.append(_row(f"**{_plain(side.name)}**", side.model, side.server, f"{side.protocol}, {side.endpoint}",
                          extra_inputs(side), side.started_at, f"`{side.workload}`"))
    lines += ["", *(f"- {_plain(remark)}" for remark in remarks(comparison))]
    if comparison.rules:
        lines += ["", "## Rules", "", "| rule | result | cell | |", "|---|---|---|---|"]
        lines += [_row(f"`{r.rule}`", f"**{r.outcome}**", f"{r.other} {r.cell}", r.reason) for r in comparison.rules]
    for cell in comparison.cells:
        lines += ["", f"## {_plain(cell.label)}: {_plain(cell.other)}", "",
                  f"| figure | {_plain(comparison.base.name)} | {_plain(cell.other)} | change [95 %] | |",
                  "|---|--:|--:|--:|---|"]
        lines += [_row(f"`{e.metric}` {e.unit}", number(e.base), number(e.other), show_change(e),
                       e.says if e.change is not None or not e.note else e.note) for e in key_effects(cell)]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Keeps a text from breaking a table."""
    return " ".join(text.split()).replace("|", "\\|")
