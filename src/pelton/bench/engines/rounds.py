"""Joins the rounds of one engine, each a run of one trial, into one result of several trials."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pelton.bench.audit import audit
from pelton.bench.monitors.joined import join_series
from pelton.bench.results import CellResult, RequestRecord, RunResult, Series
from pelton.bench.run import join_trial
from pelton.bench.summary import recompute
from pelton.bench.trial import TrialOutcome

TIMES = ("scheduled_us", "sent_us", "first_byte_us", "first_chunk_us", "first_reasoning_us", "first_content_us",
         "last_content_us", "end_us")


def join_rounds(rounds: Sequence[RunResult]) -> RunResult:
    """Round k becomes trial k; its times follow those of the rounds before. Nothing between rounds counts."""
    first, offset_us = rounds[0], 0
    cells: dict[str, CellResult] = {}
    requests: list[RequestRecord] = []
    series: list[Series] = []
    for trial, result in enumerate(rounds):
        requests += [_moved(r, offset_us, trial) for r in result.requests]
        series += [msgspec.structs.replace(s, at_us=[at + offset_us for at in s.at_us]) for s in result.series]
        for cell in result.cells:
            cells[cell.id] = _joined(cells.get(cell.id), cell, trial)
        offset_us += round(result.duration_s * 1e6)
    stopped = next((r.stop_reason for r in rounds if r.stop_reason is not None), None)
    is_whole = all(r.status == "complete" for r in rounds) and all(c.num_trials == len(rounds) for c in cells.values())
    joined = msgspec.structs.replace(
        first, status="complete" if is_whole else "partial", stop_reason=stopped, cells=list(cells.values()),
        workload=msgspec.structs.replace(first.workload, num_trials=len(rounds)), requests=requests,
        series=join_series(series), duration_s=sum(r.duration_s for r in rounds),
        skipped_cells=[cell for cell in first.skipped_cells if cell not in cells])
    joined = recompute(joined)
    return msgspec.structs.replace(joined, findings=audit(joined))


def _joined(before: CellResult | None, cell: CellResult, trial: int) -> CellResult:
    if before is None or cell.client is None:
        return cell if before is None else before
    outcome = TrialOutcome(records=[], client=cell.client, num_held=cell.num_held, stop_reason=cell.stop_reason,
                           was_cancelled=False, is_server_failing=False)
    return join_trial(before, outcome, trial)


def _moved(record: RequestRecord, offset_us: int, trial: int) -> RequestRecord:
    """The record as one of a later trial; what is None stays so."""
    times = {name: at + offset_us for name in TIMES if (at := getattr(record, name)) is not None}
    return msgspec.structs.replace(record, trial=trial, **times)
