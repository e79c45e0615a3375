"""A cell's figures, computed from its requests alone; so a stored result can be computed again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

import msgspec

from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.peak import peak
from pelton.bench.results import NO_ANALYSIS, Analysis, CellResult, LoadSpec, RequestRecord, RunResult, Series
from pelton.bench.stage import stage_results
from pelton.bench.window import find_windows


def empty_cell(cell_id: str, load: LoadSpec, *, prompt_tokens: int, output_tokens: int, is_stream: bool,
               has_fixed_sizes: bool = True, num_trials: int = 1) -> CellResult:
    """A cell of which only what was asked for is known."""
    return CellResult(id=cell_id, load=load, requested_prompt_tokens=prompt_tokens,
                      requested_output_tokens=output_tokens, has_fixed_sizes=has_fixed_sizes, is_stream=is_stream,
                      num_trials=num_trials, num_done=0, start_us=0, end_us=0, peak_in_flight=0, metrics={}, errors={})


def summarize(cell: CellResult, measured: Sequence[RequestRecord], *, analysis: Analysis = NO_ANALYSIS,
              series: Sequence[Series] = (), series_missing: Sequence[str] = ()) -> CellResult:
    """The cell with everything that follows from its measured requests of all trials, and from what was watched.

    What was asked for, what the client process did and why the cell stopped are kept as they are.
    """
    windows = find_windows(cell.load, measured)
    sample = Sample(measured, cell.is_stream, is_open_loop=not cell.load.is_closed, windows=windows,
                    analysis=analysis, series=series, series_missing=series_missing)
    if measured and not cell.has_fixed_sizes:
        cell = msgspec.structs.replace(
            cell, requested_prompt_tokens=round(fmean(r.requested_prompt_tokens for r in measured)),
            requested_output_tokens=round(fmean(r.requested_output_tokens for r in measured)))
    is_whole = cell.stop_reason is None and cell.num_requests in (None, len(measured))
    return msgspec.structs.replace(
        cell, num_done=len(measured), start_us=sample.start_us if measured else 0,
        end_us=sample.end_us if measured else 0, windows=windows,
        stages=stage_results(cell.load, sample), peak_in_flight=peak((r.sent_us, r.end_us) for r in measured),
        metrics={m.name: m.measure(sample) for m in all_metrics()},
        errors=dict(Counter(r.error for r in measured if r.error is not None)),
        num_cancelled=sum(r.was_cancelled for r in measured), status="complete" if is_whole else "partial")


def recompute(result: RunResult) -> RunResult:
    """A stored result with the figures of all cells computed again by this version's formulas."""
    measured: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in result.requests:
        if not record.is_warmup:
            measured[record.cell].append(record)
    cells = [summarize(c, measured[c.id], analysis=result.analysis, series=result.series,
                       series_missing=result.series_missing) for c in result.cells]
    return msgspec.structs.replace(result, cells=cells, metrics=[m.describe() for m in all_metrics()])
