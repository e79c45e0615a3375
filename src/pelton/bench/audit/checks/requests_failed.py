"""Failed requests, which are left out of every latency: errors that would count as speed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

import msgspec

from pelton.bench.audit.view import View, failures, report
from pelton.bench.results import CellResult, Finding

MAX_SHARE = 0.1
MIN_TIMES_FASTER = 2.0


def check(view: View) -> Iterator[Finding]:
    for severity in ("failure", "warning"):
        cells = [c for c in view.cells if c.errors and _is_grave(view, c) == (severity == "failure")]
        evidence = {c.id: _seen(view, c) for c in cells}
        messages = Counter(r.error_message for c in cells for r in view.measured(c) if r.error is not None)
        example = f"; most often: {messages.most_common(1)[0][0]}" if messages else ""
        for finding in report(
                "requests_failed", severity, evidence,
                "Latencies are those of the requests that survived, and a server that sheds load looks fast. Find the "
                "cause, or lower the load."):
            yield msgspec.structs.replace(finding, evidence=finding.evidence + example)


def _is_grave(view: View, cell: CellResult) -> bool:
    return sum(cell.errors.values()) > MAX_SHARE * cell.num_done


def _seen(view: View, cell: CellResult) -> str:
    failed = [r.latency_us for r in view.measured(cell) if r.error is not None]
    good = [r.latency_us for r in view.good(cell)]
    is_fast = failed and good and statistics.median(failed) * MIN_TIMES_FASTER < statistics.median(good)
    quick = ", and faster than answers, so that their slots came free early" if is_fast else ""
    return failures(cell.errors, cell.num_done) + quick
