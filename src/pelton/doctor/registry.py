"""The checks in the order of the report. A new check is a file in checks/ and its line here."""

from __future__ import annotations

import importlib

from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

CHECKS = ("python", "versions", "torch", "driver", "gpus", "peers", "container", "compiler", "limits", "disk", "hub")


def run_checks(probe: Probe, names: tuple[str, ...] = CHECKS) -> list[Result]:
    """All results in order; a check that breaks is a result too."""
    results: list[Result] = []
    for name in names:
        try:
            results += importlib.import_module(f"pelton.doctor.checks.{name}").check(probe)
        except Exception as error:
            results.append(Result(name, "warn", f"the check itself failed: {type(error).__name__}: {error}",
                                  "report this with the output of `pelton doctor --json`"))
    return results
