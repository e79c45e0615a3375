"""The steady-state window of a cell: when its load was full, found from its requests alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pelton.bench.counted import counted
from pelton.bench.results import LoadSpec, RequestRecord, Window

MIN_ENDS = 10
"""Answers that must end inside a window before a rate over it means anything."""


def find_windows(load: LoadSpec, measured: Iterable[RequestRecord]) -> list[Window]:
    """One window per trial, in order; a trial without a steady part has one that says why."""
    trials: dict[int, list[RequestRecord]] = defaultdict(list)
    for record in measured:
        trials[record.trial].append(record)
    return [_find(load, trial, trials[trial]) for trial in sorted(trials)]


def _find(load: LoadSpec, trial: int, records: list[RequestRecord]) -> Window:
    if load.changes_by_plan:
        return Window(trial=trial, withheld="the load changes by plan")
    found = _full(load.concurrency, records) if load.kind == "closed" else _arriving(records)
    if isinstance(found, str):
        return Window(trial=trial, withheld=found)
    start, end = found
    needed = max(MIN_ENDS, load.concurrency or 0)
    num_ends = sum(start < r.end_us <= end for r in records)
    if end <= start or num_ends < needed:
        return Window(trial=trial, withheld=f"{counted(num_ends, 'answer')} ended while the load was full; {needed} "
                                            "are needed")
    return Window(trial=trial, start_us=start, end_us=end)


def _full(concurrency: int, records: Sequence[RequestRecord]) -> tuple[int, int] | str:
    """From the moment all slots were taken to the last moment they were: a closed loop's run-out begins there."""
    edges = sorted([(r.sent_us, 1) for r in records] + [(r.end_us, -1) for r in records])
    in_flight, start, end = 0, None, None
    for at, change in edges:
        if in_flight == concurrency:
            end = at
        in_flight += change
        if in_flight == concurrency and start is None:
            start = at
    return (start, end) if start is not None else f"{concurrency} requests were never in flight together"


def _arriving(records: Sequence[RequestRecord]) -> tuple[int, int] | str:
    """From one median latency after the first arrival, when about as many leave as come, to the last arrival."""
    ended = [r.end_us - r.scheduled_us for r in records if r.is_ok]
    if not ended:
        return "no request was answered"
    first, last = min(r.scheduled_us for r in records), max(r.scheduled_us for r in records)
    return first + round(statistics.median(ended)), last
