"""Good streamed answers without any text, which have no time to first token."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    for cell in view.cells:
        good = view.good(cell) if cell.is_stream else []
        num_silent = sum(r.first_content_us is None for r in good)
        if num_silent:
            evidence[cell.id] = f"{num_silent} of {len(good)} answers"
    yield from report("first_token_invisible", "warning", evidence,
                      "These answers held no text and are missing from time to first token and decode time.")
