"""Builds a comparison: reads the results, checks the workload, measures effects, holds rules against them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pelton.bench.audit import audit, verdicts
from pelton.bench.compare.effect import MIN_TRIALS, measure_effect
from pelton.bench.compare.figures import Figure, StageTrials, Trials, compared_figures
from pelton.bench.compare.records import SCHEMA, CellComparison, Comparison, Effect, Side
from pelton.bench.compare.rules import Rule
from pelton.bench.compare.workload import work_differences, workload_differences, workload_hash
from pelton.bench.files import read_result
from pelton.bench.results import CellResult, RequestRecord, RunResult, StageResult
from pelton.bench.summary import recompute
from pelton.errors import ConfigError


@dataclass(frozen=True)
class Named:
    """A result with the name and the place it is shown under."""

    name: str
    path: str
    result: RunResult


def read_named(places: Sequence[str]) -> list[Named]:
    """Reads results from files or directories; named after what tells them apart.

    Raises:
        ConfigError: one cannot be read.
    """
    paths = [Path(place).expanduser() for place in places]
    paths = [path / "results.json" if path.is_dir() else path for path in paths]
    names = [path.parent.name if path.name == "results.json" else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("results must be different files; a result compared with itself shows nothing")
    return [Named(name, str(path), read_result(path)) for name, path in zip(names, paths)]


def compare(named: Sequence[Named], *, rules: Sequence[Rule] = (), needs_significance: bool = False,
            force: bool = False) -> Comparison:
    """Holds every result against the first. All are computed again, by this version's formulas and with the latency
    targets of the first, so that equal names mean equal things.

    Args:
        force: go on where the workloads or the work differ, and hold rules against cells that the audit failed as
            against any other.

    Raises:
        ConfigError: the workloads differ, or share no cell, and it is not forced.
    """
    base, *others = [_recomputed(side, named[0].result) for side in named]
    differences = {side.name: workload_differences(base.result, side.result) for side in others}
    _check(base, differences, force=force)
    cells = [cell for side in others for cell in _compare_side(base, side, rules)]
    work = sorted({f"{c.cell}: {text}" for c in cells for text in c.different_work})
    if work and not force:
        raise ConfigError(f"cells did different work though the same was asked for ({'; '.join(work[:3])}); their "
                          "times do not compare; find out why, or give force to compare them marked")
    found = {c.cell for c in cells}
    if not found:
        raise ConfigError("the results have no cell in common")
    sides = [_side(base, []), *(_side(side, differences[side.name]) for side in others)]
    unfit = {} if force else {side.name: _unfit(sides[0], side) for side in sides[1:]}
    outcomes = [rule.judge(cell, needs_significance=needs_significance,
                           unfit=unfit.get(cell.other, {}).get(cell.cell, ""))
                for rule in rules for cell in cells if cell.stage is None]
    return Comparison(schema=SCHEMA, sides=sides, is_forced=force and bool(work or any(differences.values())),
                      cells=cells, rules=outcomes)


def _recomputed(side: Named, base: RunResult) -> Named:
    analysis = msgspec.structs.replace(side.result.analysis, goodput=base.analysis.goodput)
    result = recompute(msgspec.structs.replace(side.result, analysis=analysis))
    return Named(side.name, side.path, msgspec.structs.replace(result, findings=audit(result)))


def _check(base: Named, differences: dict[str, list[str]], *, force: bool) -> None:
    for name, found in differences.items():
        if found and not force:
            raise ConfigError(f"{name} measured another workload than {base.name}: {'; '.join(found)}; measure the "
                              "same, or give force to compare them marked")


def _side(side: Named, differences: list[str]) -> Side:
    result = side.result
    software = " ".join(filter(None, (result.target.server_header, result.target.version)))
    return Side(name=side.name, path=side.path, server=f"{result.target.url}{f' ({software})' if software else ''}",
                model=result.target.model, protocol=result.target.protocol, endpoint=result.target.endpoint,
                extra_inputs=result.target.extra_inputs, started_at=result.environment.started_at,
                workload=workload_hash(result), differences=differences, status=result.status,
                verdicts=dict(verdicts(result)), failures=_failures(result))


def _failures(result: RunResult) -> dict[str, list[str]]:
    """Cell that the audit failed -> the names of the findings that failed it."""
    failures = [finding for finding in result.findings if finding.severity == "failure"]
    return {cell: list(dict.fromkeys(f.name for f in failures if not f.cells or cell in f.cells))
            for cell, verdict in verdicts(result).items() if verdict == "failed"}


def _unfit(base: Side, other: Side) -> dict[str, str]:
    """Cell that the audit failed on either side -> which side, and for what."""
    said: dict[str, list[str]] = defaultdict(list)
    for side in (base, other):
        for cell, names in side.failures.items():
            said[cell].append(f"{side.name} ({', '.join(names)})")
    return {cell: f"the audit failed {' and '.join(parts)}" for cell, parts in said.items()}


def _compare_side(base: Named, side: Named, rules: Sequence[Rule]) -> list[CellComparison]:
    figures = {figure.name: figure for figure in (*compared_figures(), *(rule.figure for rule in rules))}
    asked = {rule.figure.name for rule in rules}
    theirs = {cell.id: cell for cell in side.result.cells}
    ours_measured, theirs_measured = _by_cell(base.result), _by_cell(side.result)
    found = []
    for cell in base.result.cells:
        if (other := theirs.get(cell.id)) is None:
            continue
        trials = [Trials(c, measured[c.id], r.analysis) for c, measured, r in (
            (cell, ours_measured, base.result), (other, theirs_measured, side.result))]
        has_repeats = min(cell.num_trials, other.num_trials) >= MIN_TRIALS
        effects = [_effect(figure, cell, other, *trials, has_repeats=has_repeats) for figure in figures.values()]
        label = (f"{cell.load.label}, {cell.requested_prompt_tokens} in, {cell.requested_output_tokens} out"
                 f"{'' if cell.is_stream else ', whole'}")
        found.append(CellComparison(cell=cell.id, other=side.name, different_work=work_differences(cell, other),
                                    label=label, effects=[e for e in effects if e.metric in asked or _has_value(e)]))
        found += _compare_stages(found[-1], cell, other, *trials, has_repeats=has_repeats)
    return found


def _compare_stages(whole: CellComparison, base: CellResult, other: CellResult, *trials: Trials,
                    has_repeats: bool) -> Iterator[CellComparison]:
    """The stages that both sides came to."""
    theirs = {stage.name: stage for stage in other.stages}
    for stage in base.stages:
        if stage.name not in theirs:
            continue
        parts = [StageTrials(side, stage.name) for side in trials]
        effects = [_effect(figure, stage, theirs[stage.name], *parts, has_repeats=has_repeats)
                   for figure in compared_figures()]
        yield msgspec.structs.replace(whole, stage=stage.name, label=f"{whole.label}, stage {stage.name}",
                                      different_work=[], effects=[e for e in effects if _has_value(e)])


def _has_value(effect: Effect) -> bool:
    return effect.base is not None or effect.other is not None


def _effect(figure: Figure, base: CellResult | StageResult, other: CellResult | StageResult,
            base_trials: Trials | StageTrials, other_trials: Trials | StageTrials, *, has_repeats: bool) -> Effect:
    return measure_effect(
        figure, *(figure.read(cell.metrics.get(figure.metric.name)) for cell in (base, other)),
        base_trials=base_trials.read(figure) if has_repeats else (),
        other_trials=other_trials.read(figure) if has_repeats else ())


def _by_cell(result: RunResult) -> dict[str, list[RequestRecord]]:
    found: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in result.requests:
        if not record.is_warmup:
            found[record.cell].append(record)
    return found
