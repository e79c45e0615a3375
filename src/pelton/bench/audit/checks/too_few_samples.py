"""Percentiles that would rest on less than one expected sample beyond them."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, spread
from pelton.bench.percentiles import num_samples_needed
from pelton.bench.results import Finding

SHOWN = (95, 99)


def check(view: View) -> Iterator[Finding]:
    counts = {c.id: found.num_samples for c in view.cells if (found := c.distribution("e2e_latency")) is not None}
    few = {cell: n for cell, n in counts.items() if n < num_samples_needed(max(SHOWN))}
    if few:
        least = min(few.values())
        needs = " and ".join(f"P{p} needs {num_samples_needed(p)}" for p in SHOWN if least < num_samples_needed(p))
        yield Finding(name="too_few_samples", severity="note", cells=list(few),
                      evidence=f"{len(few)} cells have {spread(list(few.values()))} good requests each; {needs}",
                      advice="These percentiles are withheld: they would be little more than the largest sample. "
                             "Give more num_requests.")
