"""Fewer requests in flight than asked for: fewer requests than slots, a slow client, or a server that refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pelton.bench.audit.view import View, join, report
from pelton.bench.peak import peak
from pelton.bench.results import CellResult, Finding

MIN_SHARE = 0.75  # of the asked-for concurrency, as a mean over the cell's time


def check(view: View) -> Iterator[Finding]:
    closed = {c.id: (c, *_in_flight(view, c)) for c in view.cells if c.concurrency is not None and c.num_done}
    what = "in flight" if view.workload.session is None else "conversations"
    few = {name: f"{c.num_done if c.num_requests is None else c.num_requests} requests asked for, at most {most} "
                 f"{what} of {c.concurrency}" + _refused(c)
           for name, (c, most, _) in closed.items() if most < c.concurrency}
    yield from report(
        "concurrency_not_reached", "failure", few,
        "Give num_requests of at least twice the concurrency; until then read these cells as the number in flight "
        "that was measured.")
    pauses = view.workload.session is not None and view.workload.session.think_time_s > 0
    stages = {c.id: text for c in view.cells if c.load.kind == "closed_stages" and not pauses
              and (text := _short_stages(c))}
    yield from report(
        "stage_not_reached", "failure", stages,
        "A stage never had the requests in flight that it was to show: make it longer, or the client faster; until "
        "then read its figures as those of the number that was measured.")
    thin = {name: f"{mean:.1f} {what} on average of {c.concurrency}" for name, (c, _, mean) in closed.items()
            if name not in few and mean < MIN_SHARE * c.concurrency}
    yield from report(
        "concurrency_thin", "warning", thin,
        "The run-out at the end, or the client's own work between two requests, weighs too much: give more requests "
        "per cell; the figures hold for the number measured.")


def _in_flight(view: View, cell: CellResult) -> tuple[int, float]:
    """(most, mean) requests in flight, or conversations held: their pauses for thought are as asked for."""
    if view.workload.session is None:
        return cell.peak_in_flight, cell.value("in_flight_requests") or 0.0
    spans: dict[tuple[int, str | None], tuple[int, int]] = {}
    trials: dict[int, tuple[int, int]] = {}
    for r in view.measured(cell):
        for found, key in ((spans, (r.trial, r.session)), (trials, r.trial)):
            start, end = found.get(key, (r.sent_us, r.end_us))
            found[key] = min(start, r.sent_us), max(end, r.end_us)
    by_trial: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (trial, _), span in spans.items():
        by_trial[trial].append(span)
    seconds = sum(end - start for start, end in trials.values())
    return (max(map(peak, by_trial.values())),
            sum(end - start for start, end in spans.values()) / max(seconds, 1))


def _short_stages(cell: CellResult) -> str:
    wanted = {stage.name: stage.most_in_flight for stage in cell.load.stages}
    return join([f"stage {s.name}: at most {s.peak_in_flight}" for s in cell.stages
                 if s.peak_in_flight < wanted[s.name]])


def _refused(cell: CellResult) -> str:
    refused = sum(count for kind, count in cell.errors.items() if kind in ("http_429", "http_503", "connect"))
    return f" ({refused} refused)" if refused else ""
