"""`pelton bench search`: the highest load that keeps the latency targets, or the knee of the throughput curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from pelton.bench.agenda import Cells
from pelton.bench.cell import CellSpec, default_warmup, session_of
from pelton.bench.command import measure
from pelton.bench.load.tally import BUDGET_SPENT
from pelton.bench.options import SearchOptions
from pelton.bench.results import CellResult, LoadSpec, SearchResult, SearchStep

CUT_SHORT = (BUDGET_SPENT, "interrupted")  # reasons to stop that say nothing about the level
MIN_SERVED_PERCENT = 95.0  # of the requests that arrive; a server that answers fewer falls behind for good
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


def judge(cell: CellResult, options: SearchOptions) -> tuple[bool, str]:
    """(whether the level passes, why), the throughput of other levels aside."""
    if cell.errors:
        return False, f"{sum(cell.errors.values())} requests failed"
    if cell.stop_reason is not None:
        return False, cell.stop_reason
    if not cell.load.is_closed:
        served = cell.value("served_share")
        if served is None:
            return False, cell.metrics["served_share"].withheld or "nobody knows what was served"
        if served < MIN_SERVED_PERCENT:
            return False, f"{served:.4g} % of the load was served, the rest queued"
    if options.goodput is not None:
        share, wanted = cell.value("attainment"), options.attainment
        if share is None:
            return False, cell.metrics["attainment"].withheld or "no share of requests within the targets"
        return share >= wanted, f"{share:.4g} % of the requests within the targets, {wanted:g} wanted"
    return True, f"{cell.value('output_throughput') or 0.0:,.4g} tokens/s"


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
        self._tried: list[float] = []

    def upcoming(self, cells: Cells) -> list[tuple[int, CellSpec]]:
        for level in self._tried:  # a level whose trials were not all measured comes first
            spec = self._spec(level)
            if spec.id not in cells or cells[spec.id].num_trials < self._options.num_trials:
                return self._trials(spec, cells)
        level = self._next(cells)
        if level is None or level in self._tried:  # tried, and cut short before it could be judged
            return []
        self._tried.append(level)
        spec = self._spec(level)
        if spec.id in cells and cells[spec.id].num_trials >= self._options.num_trials:
            return self.upcoming(cells)  # of a run that is gone on with
        return self._trials(spec, cells)

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
        failed = min((s.level for s in steps if not s.passed), default=None)
        best = max((s.level for s in steps if s.passed and (failed is None or s.level < failed)), default=None)
        if self._options.wants_knee:
            reached = [s.level for s in steps if not s.passed and judge(cells[s.cell], self._options)[0]]
            best = min(reached, default=best)
        return SearchResult(variable=self._options.search_for, criterion=self._options.criterion, steps=steps,
                            best=best, least_failed=failed, is_settled=self._next(cells) is None)

    def _next(self, cells: Cells) -> float | None:
        verdicts = {step.level: step.passed for step in self._steps(cells)}
        options = self._options
        return next_level(verdicts, start=options.search_start, most=options.search_most,
                          precision=options.search_precision, is_whole=self._is_whole)

    def _steps(self, cells: Cells) -> list[SearchStep]:
        """The levels in the order in which they were tried, each judged beside those before it."""
        steps: list[SearchStep] = []
        for level in self._tried:
            cell = cells.get(self._spec(level).id)
            if cell is None or cell.num_trials < self._options.num_trials or cell.stop_reason in CUT_SHORT:
                continue
            passed, why = judge(cell, self._options)
            steps.append(SearchStep(level=level, cell=cell.id, passed=passed, reason=why))
        if not self._options.wants_knee:
            return steps
        below = below_knee({s.level: cells[s.cell].value("output_throughput") or 0.0 for s in steps if s.passed},
                           self._options.knee_gain)
        return [msgspec.structs.replace(s, passed=below.get(s.level, False)) for s in steps]

    def _trials(self, spec: CellSpec, cells: Cells) -> list[tuple[int, CellSpec]]:
        """The trials of this cell to come, and as a guess for the time budget as many of two more cells."""
        done = cells[spec.id].num_trials if spec.id in cells else 0
        num_trials = self._options.num_trials
        return [(trial, spec) for trial in range(done, num_trials)] + [(0, spec)] * (2 * num_trials)

    def _spec(self, level: float) -> CellSpec:
        options = self._options
        load = options.load_at(level)
        return CellSpec(load=load, **options.contents()[0].fields,
                        num_warmup=default_warmup(load) if options.num_warmup is None else options.num_warmup,
                        is_stream=options.can_stream, session=session_of(options),
                        cancellation_delay_s=options.cancellation_delay)
