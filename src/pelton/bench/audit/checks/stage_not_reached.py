"""Stages that a load never came to, and stages of requests in flight that never had so many."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, failures, join, report
from pelton.bench.peak import peak
from pelton.bench.results import CellResult, Finding, LoadStage, StageResult

MIN_EXPECTED = 5  # arrivals of a stage of rates: of so many some come, with a chance of over 99 %


def check(view: View) -> Iterator[Finding]:
    staged = [c for c in view.cells if c.load.stages]
    yield from report(
        "stage_not_reached", "failure", {c.id: text for c in staged if (text := _absent(c))},
        "Nothing was measured of a stage that was asked for. Leave num_requests and measurement_duration out, or give "
        "more of them, so that the load lasts as long as its stages; make stages longer than a single answer takes.")
    pauses = view.workload.session is not None and view.workload.session.think_time_s > 0
    levels = [c for c in staged if c.load.kind == "closed_stages" and not pauses]
    yield from report(
        "stage_not_reached", "failure", {c.id: text for c in levels if (text := _low(view, c, has_failed=True))},
        "A stage never had the requests in flight that it was to show, and requests of it failed: one that the server "
        "refuses at once leaves its slot empty. See to the errors first (requests_failed); until then read its figures "
        "as those of the number that was measured.")
    yield from report(
        "stage_not_reached", "failure", {c.id: text for c in levels if (text := _low(view, c, has_failed=False))},
        "A stage never had the requests in flight that it was to show: make it longer, give more num_requests where "
        "they ran out in it, or make the client faster; until then read its figures as those of the number that was "
        "measured.")


def _absent(cell: CellResult) -> str:
    """Stages without a request, unless the cell was stopped before them: cells_cut_short tells of those."""
    if cell.stop_reason is not None:
        return ""
    load, begun = cell.load, {stage.name for stage in cell.stages}
    last = max((i for i, stage in enumerate(load.stages) if stage.name in begun), default=-1)
    was_spent = load.duration_s is not None or (cell.num_requests is not None and cell.num_done >= cell.num_requests)
    found = []
    for number, stage in enumerate(load.stages):
        if stage.name in begun or not _has_requests(stage):
            continue
        if number > last and was_spent:
            found.append(f"stage {stage.name}: never came")
        elif load.is_closed:  # of arrivals the first may all be warm-up
            found.append(f"stage {stage.name}: nothing began in it")
    return join(found)


def _has_requests(stage: LoadStage) -> bool:
    if stage.concurrency is not None:
        return True
    return stage.duration_s * (stage.rate + stage.end_rate) / 2 >= MIN_EXPECTED


def _low(view: View, cell: CellResult, *, has_failed: bool) -> str:
    """Stages that began and were never full, of which requests failed or did not."""
    asked = {stage.name: stage for stage in cell.load.stages}
    found = []
    for stage in cell.stages:
        most, wanted = _most_in_flight(view, cell, stage), asked[stage.name]
        is_cut = (cell.stop_reason is not None and stage is cell.stages[-1]
                  and wanted.end_concurrency > wanted.concurrency)  # on its way up: cells_cut_short tells of it
        if most < wanted.most_in_flight and bool(stage.errors) == has_failed and not is_cut:
            failed = f", and {failures(stage.errors, stage.num_done)}" if has_failed else ""
            found.append(f"stage {stage.name}: at most {most}{failed}")
    return join(found)


def _most_in_flight(view: View, cell: CellResult, stage: StageResult) -> int:
    """The stage's own figure, or what began in it and was in flight together: a last stage that goes by count ends
    as its last request begins, and its figure is short of that one."""
    own = peak((r.sent_us, r.end_us) for r in view.measured(cell) if r.stage == stage.name)
    return max(stage.peak_in_flight, own)
