"""`pelton bench search`: the highest load that keeps the latency targets, or the knee of the throughput curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pelton.bench.agenda import Cells
from pelton.bench.cell import CellSpec, default_warmup, session_of
from pelton.bench.command import measure
from pelton.bench.counted import counted
from pelton.bench.load.tally import BUDGET_SPENT
from pelton.bench.options import SearchOptions
from pelton.bench.results import CellResult, Evidence, LoadSpec, SearchResult, SearchStep
from pelton.bench.shares import enough_to_tell, falls_short, num_to_tell, share_interval

CUT_SHORT = (BUDGET_SPENT, "interrupted")  # reasons to stop that say nothing about the level
MIN_SERVED_PERCENT = 95.0  # of the requests that arrive; a server that answers fewer falls behind for good
PAUSE_ROUNDS, MIN_PAUSED = 2, 8  # times the requests in flight that a pause may make late, and how many at least
LEAST_SHARE_OF_START = 1 / 64  # how far below its start a search for a rate goes before it gives up


def run_search(options: SearchOptions) -> int:
    """Searches, and writes the files that a sweep writes. Returns the exit status.

    Raises:
        PeltonError: wrong options, an unwritable output_dir, or the server failed; what was measured is kept.
    """
    return measure("search", options, SearchAgenda(options))


def next_level(verdicts: Mapping[float, bool], *, start: float, most: float, precision: float,
               is_whole: bool) -> float | None:
    """The load to try next: doubling while all pass, then halving the logarithm of the gap; none at the end.

    The answer is the largest level that passed below the smallest that failed. Levels are whole numbers where
    `is_whole`; the search ends when the two differ by no more than `precision`, relatively.
    """
    failed = min((level for level, passed in verdicts.items() if not passed), default=None)
    passed = max((level for level, ok in verdicts.items() if ok and (failed is None or level < failed)), default=None)
    if failed is None:
        if passed is None:
            return min(start, most)
        return None if passed >= most else min(2 * passed, most)
    if passed is None:
        lower = failed // 2 if is_whole else failed / 2
        return lower if lower >= (1 if is_whole else start * LEAST_SHARE_OF_START) else None
    if failed / passed <= 1 + precision or (is_whole and failed - passed <= 1):
        return None
    middle = math.sqrt(passed * failed)
    return float(min(max(round(middle), passed + 1), failed - 1)) if is_whole else middle


@dataclass(frozen=True)
class Judgement:
    """What one level's figures say of it, the throughput of other levels aside."""

    passed: bool
    reason: str
    evidence: Evidence | None = None
    """None where no share of requests decided."""


def judge(cell: CellResult, options: SearchOptions) -> Judgement:
    """Judges a level by all of its requests together."""
    if cell.errors:
        return Judgement(False, f"{counted(sum(cell.errors.values()), 'request')} failed")
    if cell.stop_reason not in (None, *CUT_SHORT):
        return Judgement(False, cell.stop_reason)
    if not cell.load.is_closed:
        served = cell.value("served_share")
        if served is None:
            return Judgement(False, cell.metrics["served_share"].withheld or "nobody knows what was served")
        if served < MIN_SERVED_PERCENT:
            return Judgement(False, f"{served:.4g} % of the load was served, the rest queued")
    if options.goodput is not None:
        return _judge_share(cell, options.attainment)
    return Judgement(True, f"{cell.value('output_throughput') or 0.0:,.4g} tokens/s")


def _judge_share(cell: CellResult, wanted: float) -> Judgement:
    share, count = cell.value("attainment"), cell.num_done - cell.num_cancelled
    if share is None:
        return Judgement(False, cell.metrics["attainment"].withheld or "no share of requests within the targets")
    if count < 1:
        return Judgement(share >= wanted, f"{share:.4g} % of the requests within the targets, {wanted:g} wanted")
    within = round(share * count / 100)
    low, high = (100 * end for end in share_interval(within, count))
    return Judgement(
        share >= wanted, f"{within:,} of {count:,} within the targets: {share:.4g} %, 90 % interval {low:.4g} to "
        f"{high:.4g}",
        Evidence(num_within=within, num_requests=count, wanted=wanted, low=low, high=high,
                 is_decided=not low <= wanted <= high, num_to_tell=num_to_tell(within, count, wanted / 100)))


def num_trials_wanted(cell: CellResult, options: SearchOptions) -> int:
    """Trials after which the level is to be judged again: twice as many, up to the requests that can tell; those there
    are where it is clear.

    Requests near each other share their fate: a pause of either machine makes all of them late. So before there are
    enough a level fails only where it would without one such pause, of half of its requests at most.
    """
    evidence = judge(cell, options).evidence
    if evidence is None:
        return cell.num_trials
    wanted = evidence.wanted / 100
    paused = max(PAUSE_ROUNDS * (cell.value("in_flight_requests") or 1.0), MIN_PAUSED)
    is_clear = evidence.low > evidence.wanted or falls_short(
        evidence.num_within, evidence.num_requests, wanted, forgiven=min(round(paused), evidence.num_requests // 2))
    enough = enough_to_tell(wanted)
    if is_clear or evidence.num_requests >= enough:
        return cell.num_trials
    return min(2 * cell.num_trials, math.ceil(enough * cell.num_trials / evidence.num_requests))


def below_knee(throughputs: Mapping[float, float], knee_gain: float) -> dict[float, bool]:
    """For each level whether it lies below the knee; all do until twice a level brought less than the gain.

    From then on the highest throughput is known, and the knee is the lowest level that comes as near to it.
    """
    gain = 1 + knee_gain / 100
    is_flat = any(throughputs[2 * level] < gain * t for level, t in throughputs.items() if 2 * level in throughputs)
    enough = max(throughputs.values(), default=0.0) / gain if is_flat else math.inf
    return {level: throughput < enough for level, throughput in throughputs.items()}


class SearchAgenda:
    """One cell at a time, each judged before the next is chosen."""

    expects_failures = True
    goes_back = False  # a level that was cut says nothing, and the search goes no further without it

    def __init__(self, options: SearchOptions) -> None:
        self._options = options
        self._is_whole = options.search_for == "concurrency"
        self._tried: dict[float, int] = {}  # each level's trials, in the order in which they were tried

    def upcoming(self, cells: Cells) -> list[tuple[int, CellSpec]]:
        for level in self._tried:  # a level whose trials were not all measured comes first
            if todo := self._trials(level, cells):
                return todo
        level = self._next(cells)
        if level is None:
            return self._again(cells)
        if level in self._tried:  # and cut short before it could be judged
            return []
        self._tried[level] = self._options.num_trials
        return self._trials(level, cells) or self.upcoming(cells)  # of a run that is gone on with

    def loads(self) -> list[LoadSpec]:
        levels = [self._options.search_start]
        while levels[-1] < self._options.search_most:
            levels.append(min(2 * levels[-1], self._options.search_most))
        return [self._spec(level).load for level in levels]

    def missing(self, cells: Cells) -> list[str]:
        return []

    def conclude(self, cells: Cells) -> SearchResult:
        """What was found with the cells measured so far."""
        steps = self._steps(cells)
        if self._options.wants_knee:
            steps = self._up_to_knee(steps, cells)
        failed, best = _bounds(steps)
        undecided = [s.level for s in (best, failed) if s and s.evidence is not None and not s.evidence.is_decided]
        return SearchResult(variable=self._options.search_for, criterion=self._options.criterion, steps=steps,
                            best=best and best.level, least_failed=failed and failed.level,
                            is_settled=self._next(cells) is None and self._unsure(cells) is None, undecided=undecided)

    def _next(self, cells: Cells) -> float | None:
        steps, options = self._steps(cells), self._options
        verdicts = {s.level: s.passed for s in steps}
        if options.wants_knee:
            below = self._below(steps, cells)
            verdicts = {level: passed and below[level] for level, passed in verdicts.items()}
        return next_level(verdicts, start=options.search_start, most=options.search_most,
                          precision=options.search_precision, is_whole=self._is_whole)

    def _again(self, cells: Cells) -> list[tuple[int, CellSpec]]:
        """More trials of a level that bounds the answer and may stand on the wrong side; none where both are clear, or
        time ran out before they were."""
        level = self._unsure(cells)
        if level is None:
            return []
        self._tried[level] = num_trials_wanted(cells[self._spec(level).id], self._options)
        return self._trials(level, cells)

    def _unsure(self, cells: Cells) -> float | None:
        """The level that is to be measured again before the answer stands. Others only led to it."""
        bounds = (s for s in _bounds(self._steps(cells)) if s is not None)
        return next((s.level for s in bounds
                     if num_trials_wanted(cells[s.cell], self._options) > cells[s.cell].num_trials), None)

    def _steps(self, cells: Cells) -> list[SearchStep]:
        """The levels in the order in which they were tried, each judged by itself."""
        steps: list[SearchStep] = []
        num_trials = self._options.num_trials
        for level in self._tried:
            cell = cells.get(self._spec(level).id)
            if cell is None or cell.num_trials < num_trials:
                continue
            if cell.stop_reason in CUT_SHORT and cell.num_trials == num_trials:  # what was cut later was measured once
                continue
            found = judge(cell, self._options)
            steps.append(SearchStep(level=level, cell=cell.id, passed=found.passed, reason=found.reason,
                                    evidence=found.evidence))
        return steps

    def _below(self, steps: list[SearchStep], cells: Cells) -> dict[float, bool]:
        """For each level whether it lies below the knee."""
        found = below_knee({s.level: cells[s.cell].value("output_throughput") or 0.0 for s in steps if s.passed},
                           self._options.knee_gain)
        return {s.level: found.get(s.level, False) for s in steps}

    def _up_to_knee(self, steps: list[SearchStep], cells: Cells) -> list[SearchStep]:
        """The knee passes, as what lies below it does."""
        below = self._below(steps, cells)
        knee = min((s.level for s in steps if s.passed and not below[s.level]), default=math.inf)
        return [msgspec.structs.replace(s, passed=False, reason=f"{s.reason}, above the knee")
                if s.passed and s.level > knee else s for s in steps]

    def _trials(self, level: float, cells: Cells) -> list[tuple[int, CellSpec]]:
        """The trials of this level to come, and as a guess for the time budget as many of two more. Of a level that is
        measured again one at a time, which may take half of what is left."""
        spec, num_trials = self._spec(level), self._options.num_trials
        cell = cells.get(spec.id)
        done = 0 if cell is None else cell.num_trials
        if done >= self._tried[level] or (done >= num_trials and cell.stop_reason in CUT_SHORT):
            return []
        if done >= num_trials:
            return [(done, spec)] * 2
        return [(trial, spec) for trial in range(done, num_trials)] + [(0, spec)] * (2 * num_trials)

    def _spec(self, level: float) -> CellSpec:
        options = self._options
        load = options.load_at(level)
        return CellSpec(load=load, **options.contents()[0].fields,
                        num_warmup=default_warmup(load) if options.num_warmup is None else options.num_warmup,
                        is_stream=options.can_stream, session=session_of(options),
                        cancellation_delay_s=options.cancellation_delay)


def _bounds(steps: list[SearchStep]) -> tuple[SearchStep | None, SearchStep | None]:
    """(lowest that failed, highest that passed below it)."""
    failed = min((s for s in steps if not s.passed), key=lambda s: s.level, default=None)
    passed = [s for s in steps if s.passed and (failed is None or s.level < failed.level)]
    return failed, max(passed, key=lambda s: s.level, default=None)
