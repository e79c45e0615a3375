"""Runs the checks and shows the results."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pelton import __version__
from pelton.doctor.probe import Probe
from pelton.doctor.registry import run_checks
from pelton.doctor.result import Result

_STYLES = {"ok": "green", "info": "cyan", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `pelton doctor`."""

    json: bool = False
    """Print one JSON object instead of a table."""


def run_doctor(options: DoctorOptions, probe: Probe | None = None) -> int:
    """Prints what every check found; exit code 1 when one failed. A machine without a GPU is no failure."""
    results = run_checks(probe or Probe())
    if options.json:
        print(json.dumps(as_json(results), indent=1))
    else:
        print_table(results, Console())
    return int(any(result.status == "fail" for result in results))


def as_json(results: list[Result]) -> dict[str, object]:
    return {"pelton_version": __version__, "platform": platform.platform(),
            "ok": all(result.status != "fail" for result in results),
            "results": [dataclasses.asdict(result) for result in results]}


def print_table(results: list[Result], console: Console) -> None:
    """One row per result, its mend below what was found, and a closing line with the counts."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for options in ({"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**options)
    for result in results:
        text = Text(result.found)
        if result.mend:
            text.append(f"\n→ {result.mend}", style=_STYLES[result.status])
        table.add_row(Text(result.status, style=_STYLES[result.status]), result.name, text)
    console.print(table)
    counts = {status: sum(r.status == status for r in results) for status in ("fail", "warn")}
    if counts["fail"]:
        console.print(f"Not ready: {counts['fail']} to mend, {counts['warn']} to look at.", style="bold red")
    else:
        look = f", {counts['warn']} to look at" if counts["warn"] else ""
        console.print(f"Ready{look}.", style="green")
