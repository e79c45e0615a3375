"""Fewer requests in flight than asked for: fewer requests than slots, a slow client, or a server that refuses."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, join, report
from pelton.bench.results import CellResult, Finding

MIN_SHARE = 0.75  # of the asked-for concurrency, as a mean over the cell's time


def check(view: View) -> Iterator[Finding]:
    closed = [c for c in view.cells if c.concurrency is not None and c.num_done]
    few = {c.id: f"{c.num_done if c.num_requests is None else c.num_requests} requests asked for, at most "
                 f"{c.peak_in_flight} in flight of {c.concurrency}" + _refused(c)
           for c in closed if c.peak_in_flight < c.concurrency}
    yield from report(
        "concurrency_not_reached", "failure", few,
        "Give num_requests of at least twice the concurrency; until then read these cells as the number in flight "
        "that was measured.")
    stages = {c.id: text for c in view.cells if c.load.kind == "closed_stages" and (text := _short_stages(c))}
    yield from report(
        "stage_not_reached", "failure", stages,
        "A stage never had the requests in flight that it was to show: make it longer, or the client faster; until "
        "then read its figures as those of the number that was measured.")
    thin = {c.id: f"{c.value('in_flight_requests'):.1f} in flight on average of {c.concurrency}" for c in closed
            if c.id not in few and (c.value("in_flight_requests") or 0.0) < MIN_SHARE * c.concurrency}
    yield from report(
        "concurrency_thin", "warning", thin,
        "The run-out at the end, or the client's own work between two requests, weighs too much: give more requests "
        "per cell; the figures hold for the number measured.")


def _short_stages(cell: CellResult) -> str:
    wanted = {stage.name: stage.most_in_flight for stage in cell.load.stages}
    return join([f"stage {s.name}: at most {s.peak_in_flight}" for s in cell.stages
                 if s.peak_in_flight < wanted[s.name]])


def _refused(cell: CellResult) -> str:
    refused = sum(count for kind, count in cell.errors.items() if kind in ("http_429", "http_503", "connect"))
    return f" ({refused} refused)" if refused else ""
