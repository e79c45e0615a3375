"""Percentiles that would rest on less than one expected sample beyond them."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, spread_of
from pelton.bench.counted import counted
from pelton.bench.percentiles import num_samples_needed
from pelton.bench.results import Finding

SHOWN = (95, 99)


def check(view: View) -> Iterator[Finding]:
    counts = {c.id: found.num_samples for c in view.cells if (found := c.distribution("e2e_latency")) is not None}
    few = {cell: n for cell, n in counts.items() if n < num_samples_needed(max(SHOWN))}
    if few:
        least = min(few.values())
        needs = " and ".join(f"P{p} needs {num_samples_needed(p)}" for p in SHOWN if least < num_samples_needed(p))
        good = spread_of(list(few.values()), "good request")
        have = f"has {good}" if len(few) == 1 else f"have {good} each"
        yield Finding(name="too_few_samples", severity="note", cells=list(few),
                      evidence=f"{counted(len(few), 'cell')} {have}; {needs}",
                      advice="These percentiles are withheld: they would be little more than the largest sample. "
                             f"Give more {'num_runs' if view.is_offline else 'num_requests'}.")
