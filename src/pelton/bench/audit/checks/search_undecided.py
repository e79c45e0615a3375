"""A search whose answer rests on a level that its requests do not decide."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding, SearchStep


def check(view: View) -> Iterator[Finding]:
    if view.search is None:
        return
    unit = {"concurrency": "in flight", "request_rate": "requests/s"}[view.search.variable]
    unsure = {step.cell: _seen(step, unit) for step in view.search.steps
              if step.level in view.search.undecided and step.evidence is not None}
    yield from report(
        "search_undecided", "warning", unsure,
        "The level was judged by the share that was measured, and chance alone may have put that on its side of the "
        "share asked for; then the answer is another level. Give more num_requests (or measurement_duration), a longer "
        "duration_budget where that ended the search, or an attainment that fewer requests can show.")


def _seen(step: SearchStep, unit: str) -> str:
    found = step.evidence
    tells = "no number of them would tell" if found.num_to_tell is None else f"about {found.num_to_tell:,} would tell"
    return (f"{step.level:.4g} {unit} {'passed' if step.passed else 'did not pass'} with {found.num_within:,} of "
            f"{found.num_requests:,} requests within the targets ({found.share:.4g} %, 90 % interval {found.low:.4g} "
            f"to {found.high:.4g}, {found.wanted:g} wanted); {tells}")
