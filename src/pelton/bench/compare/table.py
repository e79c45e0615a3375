"""A comparison in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pelton.bench.compare.records import Comparison
from pelton.bench.compare.rules import show_change
from pelton.bench.compare.shown import key_effects, remarks
from pelton.bench.table import number

STYLES = {"better": "green", "worse": "red", "changed": "yellow", "no difference shown": "dim", "not known": "dim"}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Sides, one table for each cell and side, remarks, rules."""
    for index, side in enumerate(comparison.sides):
        role = "base" if index == 0 else "against it"
        console.print(f"[bold]{escape(side.name)}[/bold] ({role}): {escape(side.model)} at {escape(side.server)}, "
                      f"{side.started_at[:16]}, workload {side.workload}", highlight=False)
    for cell in comparison.cells:
        table = Table(title=f"{escape(cell.label)}: {escape(cell.other)} against {escape(comparison.base.name)}",
                      title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 2, 0, 0),
                      pad_edge=False)
        table.add_column("figure", no_wrap=True)
        for column in (comparison.base.name, cell.other, "change [95 %]"):
            table.add_column(escape(column), justify="right", no_wrap=True)
        table.add_column("")
        for effect in key_effects(cell):
            style = STYLES[effect.says]
            says = effect.says if effect.change is not None or not effect.note else effect.note
            table.add_row(f"{effect.metric} [dim]{effect.unit}[/dim]", number(effect.base), number(effect.other),
                          escape(show_change(effect)), f"[{style}]{escape(says)}[/{style}]")
        console.print()
        console.print(table)
    console.print()
    for remark in remarks(comparison):
        console.print(f"[yellow]note[/yellow]  {escape(remark)}", highlight=False)
    for rule in comparison.rules:
        style = {"passed": "green", "failed": "bold red", "not known": "bold red"}[rule.outcome]
        console.print(f"[{style}]{rule.outcome}[/{style}]  {escape(rule.rule)}  {escape(rule.other)} {rule.cell}: "
                      f"{escape(rule.reason)}", highlight=False)
