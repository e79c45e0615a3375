"""Runs all checks over a result, and says of each cell whether its figures may be used."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Literal

from pelton.bench.audit import checks
from pelton.bench.audit.view import View
from pelton.bench.results import Finding, RunResult

SEVERITIES = ("failure", "warning", "note")
Check = Callable[[View], Iterable[Finding]]
Verdict = Literal["failed", "with care", "sound"]


@functools.cache
def all_checks() -> tuple[Check, ...]:
    """The `check` of every module in `checks/`, by name of the module."""
    modules = (importlib.import_module(f"{checks.__name__}.{m.name}") for m in pkgutil.iter_modules(checks.__path__))
    return tuple(module.check for module in modules)


def audit(result: RunResult) -> list[Finding]:
    """All findings, the gravest first."""
    view = View(result)
    found = [finding for check in all_checks() for finding in check(view)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def verdicts(result: RunResult) -> dict[str, Verdict]:
    """Cell id -> verdict: failed if a failure names the cell, with care if a warning does. A finding about the whole
    run counts for every cell."""
    found: dict[str, Verdict] = {cell.id: "sound" for cell in result.cells}
    for severity, verdict in (("warning", "with care"), ("failure", "failed")):
        for finding in result.findings:
            if finding.severity == severity:
                found |= {cell: verdict for cell in finding.cells or found if cell in found}
    return found


def is_answer_sound(result: RunResult) -> bool:
    """Whether no failure names the cell that a search's answer was measured in; without an answer there is none."""
    search = result.search
    failed = {cell for cell, verdict in verdicts(result).items() if verdict == "failed"}
    return search is None or not any(step.cell in failed for step in search.steps if step.level == search.best)
