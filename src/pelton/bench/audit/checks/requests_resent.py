"""Requests whose first sending met a closed connection."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    counts = {c.id: (sum(r.was_resent for r in view.measured(c)), c.num_done) for c in view.cells}
    yield from report(
        "requests_resent", "warning", {cell: f"{n} of {done} requests" for cell, (n, done) in counts.items() if n},
        "The server closed kept-open connections without an answer, and the requests were sent once more. Either it "
        "closes idle connections early, or it drops requests.")
