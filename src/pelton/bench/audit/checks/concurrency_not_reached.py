"""Fewer requests in flight than asked for: fewer requests than slots, a server that refuses, or a slow client."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from pelton.bench.audit.view import View, failures, report
from pelton.bench.counted import counted
from pelton.bench.peak import peak
from pelton.bench.results import CellResult, Finding

MIN_SHARE = 0.75  # of the asked-for concurrency, as a mean over the cell's time

TOO_FEW = ("Give num_requests of at least twice the concurrency; until then read these cells as the number in flight "
           "that was measured.")
TOO_FEW_TALKS = ("Give num_requests of at least twice the concurrency times session_turns; until then read these cells "
                 "as the number of conversations that was measured.")
FAILED = ("A request that the server refuses at once leaves its slot empty, however many there are. See to the errors "
          "first (requests_failed), or lower the concurrency to what the server takes; until then read these cells as "
          "the number in flight that was measured.")
NEVER_FULL = ("There were requests enough, and yet the slots were never all taken: answers end sooner than the client "
              "fills them, ramp_up is longer than the load, or the cell was cut. Measure longer, or give the client "
              "more workers; until then read these cells as the number in flight that was measured.")
THIN_FAILED = ("A request that the server refuses at once leaves its slot empty, and one that hangs keeps the cell "
               "waiting at its end. See to the errors first (requests_failed); the figures hold for the number "
               "measured.")
THIN = ("The run-out at the end, or the client's own work between two requests, weighs too much: give more requests "
        "per cell; the figures hold for the number measured.")
THIN_OFFLINE = ("All requests of a run are queued at once, and none follows one that has ended: the figures hold for "
                "the number measured, and more runs do not change it.")


def check(view: View) -> Iterator[Finding]:
    few: dict[str, dict[str, str]] = defaultdict(dict)
    thin: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in view.cells:
        if cell.concurrency is None or not cell.num_done:
            continue
        most, mean = _in_flight(view, cell)
        failed = f", and {failures(cell.errors, cell.num_done)}" if cell.errors else ""
        if most < cell.concurrency:
            few[_why_few(view, cell)][cell.id] = f"{_sent(cell)}, at most {_of(view, cell, most)}{failed}"
        elif mean < MIN_SHARE * cell.concurrency:
            advice = THIN_FAILED if failed else THIN_OFFLINE if view.is_offline else THIN
            thin[advice][cell.id] = f"{mean:.1f} {_unit(view)} on average of {cell.concurrency}{failed}"
    yield from _by_advice("concurrency_not_reached", "failure", few)
    yield from _by_advice("concurrency_thin", "warning", thin)


def _by_advice(name: str, severity: str, found: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """A finding for each cause, which is what to do about it: {advice: {cell: what was seen}}."""
    for advice, evidence in found.items():
        yield from report(name, severity, evidence, advice)


def _why_few(view: View, cell: CellResult) -> str:
    """The advice against what kept the slots empty; refusals do not count where there was no request for them."""
    asked, session = cell.load.num_requests, view.workload.session
    num_units = math.inf if asked is None else asked if session is None else math.ceil(asked / session.num_turns)
    if cell.errors and num_units >= cell.concurrency:
        return FAILED
    if num_units >= 2 * cell.concurrency:
        return NEVER_FULL
    return TOO_FEW if session is None else TOO_FEW_TALKS


def _sent(cell: CellResult) -> str:
    """How many requests there were for the slots; each trial fills them anew."""
    asked = cell.load.num_requests
    if asked is None:
        return f"{counted(cell.num_done, 'request')} sent"
    return f"{counted(asked, 'request')} asked for" + (" in each trial" if cell.num_trials > 1 else "")


def _unit(view: View) -> str:
    return "in flight" if view.workload.session is None else "conversations"


def _of(view: View, cell: CellResult, most: int) -> str:
    if view.workload.session is None:
        return f"{most} in flight of {cell.concurrency}"
    return f"{most} of {counted(cell.concurrency, 'conversation')}"


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
