"""Cells with no answer, or hardly any: nothing was measured, and so nothing else can be found in them."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding

MIN_SHARE = 0.1  # of the requests that did not fail; of those that did another finding speaks


def check(view: View) -> Iterator[Finding]:
    few = {c.id: _seen(c, num_good) for c in view.cells if _is_empty(c, num_good := len(view.good(c)))}
    yield from report(
        "too_few_answers", "failure", few,
        "The figures are those of hardly any request, and a throughput of 0 says nothing of the server. Cancel fewer "
        "requests (cancellation_rate), or later ones, or measure for longer.")


def _is_empty(cell: CellResult, num_good: int) -> bool:
    num_not_failed = cell.num_done - sum(cell.errors.values())
    return num_good < MIN_SHARE * num_not_failed if num_not_failed else not cell.errors


def _seen(cell: CellResult, num_good: int) -> str:
    if not cell.num_done:
        return "no measured request ended"
    return f"{num_good} of {cell.num_done} requests were answered in full, {cell.num_cancelled} were cancelled"
