"""The figures of each stage of a piecewise load, from the cell's requests alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.peak import peak
from pelton.bench.results import LoadSpec, LoadStage, MetricResult, RequestRecord, StageResult, Window

OVER_TIME = ("steady_output_throughput", "steady_input_throughput", "steady_total_throughput")
"""Rates over the windows of a sample, which are then the stage's time."""
BY_REQUEST = ("attainment",)
"""Single values that are about requests, and hold for those of a stage as well; others are of a whole load's time."""


def stage_results(load: LoadSpec, sample: Sample) -> list[StageResult]:
    """The stages that sent any request, in their order; `sample` is of the whole cell."""
    if not load.stages:
        return []
    groups: dict[str | None, list[RequestRecord]] = defaultdict(list)
    for record in sample.requests:
        groups[record.stage].append(record)
    present = [stage for stage in load.stages if groups[stage.name]]
    windows = _windows(present, groups)
    return [_result(groups[stage.name], windows[stage.name], stage.name, sample) for stage in present]


def _windows(stages: Sequence[LoadStage], groups: dict[str | None, list[RequestRecord]]) -> dict[str, list[Window]]:
    """Stage -> its time in each trial: from its first request's time to the first of the next stage."""
    begun: dict[int, list[tuple[LoadStage, list[RequestRecord]]]] = defaultdict(list)
    for stage in stages:
        by_trial: dict[int, list[RequestRecord]] = defaultdict(list)
        for record in groups[stage.name]:
            by_trial[record.trial].append(record)
        for trial, records in by_trial.items():
            begun[trial].append((stage, records))
    found: dict[str, list[Window]] = defaultdict(list)
    for trial, parts in sorted(begun.items()):
        starts = [min(r.scheduled_us for r in records) for _, records in parts]
        for (stage, _), start, end in zip(parts, starts, [*starts[1:], _last_end(*parts[-1])]):
            found[stage.name].append(Window(trial=trial, start_us=start, end_us=end) if end > start else
                                     Window(trial=trial, withheld="all its requests began at once"))
    return found


def _last_end(stage: LoadStage, records: Sequence[RequestRecord]) -> int:
    """The last stage's end by plan, if its answers last so long; one that goes by count ends as its last one begins."""
    if stage.duration_s is None:
        return max(r.scheduled_us for r in records)
    return min(min(r.scheduled_us for r in records) + round(stage.duration_s * 1e6), max(r.end_us for r in records))


def _result(mine: Sequence[RequestRecord], windows: list[Window], name: str, sample: Sample) -> StageResult:
    own, whole = replace(sample, requests=mine), replace(sample, windows=windows)
    metrics = {m.name: m.measure(whole if m.name in OVER_TIME else own) for m in all_metrics()
               if m.is_distribution or m.name in (*OVER_TIME, *BY_REQUEST)}
    inside = [(max(r.sent_us, w.start_us), min(r.end_us, w.end_us)) for w, r in _together(windows, sample.requests)
              if r.sent_us < w.end_us and r.end_us > w.start_us]
    seconds = sum(w.end_us - w.start_us for w in windows if w.withheld is None) / 1e6
    if seconds:
        ended = sum(r.is_ok and w.start_us < r.end_us <= w.end_us for w, r in _together(windows, sample.requests))
        metrics["in_flight_requests"] = MetricResult(value=sum(b - a for a, b in inside) / 1e6 / seconds)
        metrics["request_throughput"] = MetricResult(value=ended / seconds)
    return StageResult(name=name, windows=windows, num_done=len(mine), peak_in_flight=peak(inside), metrics=metrics,
                       errors=dict(Counter(r.error for r in mine if r.error is not None)))


def _together(windows: Sequence[Window], requests: Sequence[RequestRecord]) -> Iterator[tuple[Window, RequestRecord]]:
    """Each request with its trial's window."""
    by_trial = {w.trial: w for w in windows if w.withheld is None}
    return ((by_trial[r.trial], r) for r in requests if r.trial in by_trial)
