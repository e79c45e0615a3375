"""Latency that rises or falls in the course of a cell: it was not in a steady state."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from pelton.bench.audit.ranks import is_larger
from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding

MIN_RATIO = 1.15
MIN_HALF = 12


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    for cell in view.cells:
        windows = {w.trial: w for w in cell.windows if w.withheld is None}
        early, late = [], []
        for record in view.good(cell):
            window = windows.get(record.trial)
            if window is None or not window.start_us <= record.sent_us <= window.end_us:
                continue
            middle = (window.start_us + window.end_us) / 2
            (early if record.sent_us < middle else late).append((record.end_us - record.scheduled_us) / 1e3)
        if min(len(early), len(late)) < MIN_HALF:
            continue
        ratio = statistics.median(late) / max(statistics.median(early), 1e-9)
        if ratio > MIN_RATIO and is_larger(late, early):
            evidence[cell.id] = f"the second half of the steady window took {ratio:.2f} times as long as the first"
        elif ratio < 1 / MIN_RATIO and is_larger(early, late):
            evidence[cell.id] = f"the first half of the steady window took {1 / ratio:.2f} times as long as the second"
    yield from report(
        "drift", "warning", evidence,
        "The cell has no one latency: a queue grows (lower the load), the machine throttles, or warm-up goes on. "
        "Measure longer, or give more num_warmup.")
