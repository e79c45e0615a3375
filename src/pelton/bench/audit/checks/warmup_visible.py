"""The first requests of a cell are slower than the rest: something was still warming up."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from pelton.bench.audit.ranks import is_larger
from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding, RequestRecord

MIN_RATIO = 1.2
MIN_FIRST, MIN_REST = 4, 12


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    for cell in view.cells:
        ordered = sorted((r for r in view.good(cell) if r.trial == 0), key=lambda r: r.sent_us)
        count = max(cell.concurrency or 0, MIN_FIRST)
        first, rest = [_ms(r) for r in ordered[:count]], [_ms(r) for r in ordered[count:]]
        if len(rest) < max(MIN_REST, count):
            continue
        ratio = statistics.median(first) / max(statistics.median(rest), 1e-9)
        if ratio > MIN_RATIO and is_larger(first, rest):
            evidence[cell.id] = f"{_what(cell)} of the first {count} requests is {ratio:.2f} times that of the rest"
    yield from report(
        "warmup_visible", "warning", evidence,
        "Compilation, empty caches or a burst at the start are in the figures. Give more num_warmup, or read the "
        "steady-state throughput.")


def _ms(record: RequestRecord) -> float:
    start = record.first_text_us if record.first_text_us is not None else record.end_us
    return (start - record.sent_us) / 1e3


def _what(cell: CellResult) -> str:
    return "the median time to first token" if cell.is_stream else "the median latency"
