"""A run: open the target, measure the trials of all cells in turn, audit, keep what there is whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from pelton.bench import event_loop
from pelton.bench.agenda import Agenda
from pelton.bench.audit import audit
from pelton.bench.budget import Budget
from pelton.bench.calibration_store import nearest
from pelton.bench.cell import CellSpec, session_of
from pelton.bench.client import Exchange, allow_connections, now_ns
from pelton.bench.environment import describe_environment
from pelton.bench.load.plan import Planned
from pelton.bench.load.tally import BUDGET_SPENT
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.monitors.joined import join_series
from pelton.bench.monitors.watch import Watch
from pelton.bench.options import ServeOptions, SweepOptions, TargetOptions
from pelton.bench.progress import Progress
from pelton.bench.prompts.options import as_text, describe
from pelton.bench.results import (
    SCHEMA,
    Analysis,
    CellResult,
    ClientError,
    LoadSpec,
    RequestRecord,
    RunResult,
    Series,
    Workload,
)
from pelton.bench.resume import check_same, whole_cells
from pelton.bench.summary import recompute, summarize
from pelton.bench.target import Target, open_target
from pelton.bench.trial import DEFAULT_MAX_IN_FLIGHT, Means, TrialOutcome, run_trial
from pelton.bench.workers.crew import Crew
from pelton.errors import ConfigError, ServerError

Keep = Callable[[RunResult], None]
QUICK_KEEP_S, MAX_KEEP_SHARE = 0.5, 0.05  # what takes longer to keep may take a twentieth of the run's time
MOST_OPEN_CONNECTIONS = 512  # an open loop opens more when it has to, as far as the limit of files allows


@dataclasses.dataclass(frozen=True)
class CutTrial:
    """A trial that the time budget cut short."""

    trial: int
    spec: CellSpec
    whole_s: float
    """What all of it would have taken at its own pace."""


class Run:
    """The cells of one command, measured in order; the trials of all cells are interleaved."""

    def __init__(self, kind: Literal["serve", "sweep", "search"], options: ServeOptions | SweepOptions,
                 agenda: Agenda, *, progress: Progress, keep: Keep | None = None,
                 client_errors: Sequence[ClientError] = (), earlier: RunResult | None = None) -> None:
        """`keep` is given the result so far after every trial: a crash loses one at most, of large results a few.

        `client_errors` are the client's own errors on this machine, kept with the cells they concern. `earlier` is a
        run to go on with: its whole cells are kept.
        """
        self._kind = kind
        self._options = options
        self._agenda = agenda
        self._earlier = earlier
        self._progress = progress
        self._keep = keep
        self._client_errors = client_errors
        self._environment = describe_environment(command_line(kind, options))
        self._seed = secrets.randbits(32) if options.seed is None else options.seed
        self._cells: dict[str, CellResult] = {}
        self._requests: list[RequestRecord] = []
        self._outcomes: dict[str, dict[int, TrialOutcome]] = defaultdict(dict)  # of each cell's trials
        self._cut: list[CutTrial] = []
        self._missing: list[str] = []  # what could not be watched, as the last figures knew it
        self._measured: dict[str, list[RequestRecord]] = defaultdict(list)  # those of each cell, warm-up left out
        if earlier is not None:
            self._seed = earlier.workload.seed
            self._cells, kept = whole_cells(earlier, num_trials=options.num_trials)
            self._file_requests(kept)
        self._earlier_cells = dict(self._cells)
        self._keep_after_ns = 0
        self._stop_reason: str | None = None
        self._remarks: list[str] = []
        self._analysis: Analysis
        self._watch: Watch

    async def measure(self) -> RunResult:
        """Runs all cells. An interrupt or a failing server ends the run early; the result says so.

        Raises:
            PeltonError: nothing could be measured at all.
        """
        allow_connections(max(map(_num_connections, self._agenda.loads())))
        # Prompts that an earlier part of the run has sent must not come again: the server may have kept them.
        target = await open_target(self._options, seed=self._seed + len(self._requests),
                                   material=self._options.material)
        self._options.check_endpoint(target.info.endpoint)
        check_same(self._earlier, target.info, self._workload(target))
        crew = Crew(self._options.workers, target.client, self._client_errors)
        self._analysis = self._options.make(Analysis(hardware=target.hardware))
        for _, spec in self._agenda.upcoming(self._cells):
            spec.check(target.prompts)
            if spec.remark is not None and spec.remark not in self._remarks:
                self._remarks.append(spec.remark)
        self._watch = Watch(gpus=self._options.gpus_to_watch(target.client.address.host),
                            metrics_url=self._options.url_to_watch(target.client.address.url))
        start_ns = now_ns() - (0 if self._earlier is None else round(self._earlier.duration_s * 1e9))
        seconds = getattr(self._options, "duration_budget", None)
        budget = Budget(None if seconds is None else now_ns() + round(seconds * 1e9))
        self._progress.start(len(self._agenda.upcoming(self._cells)), target.info,
                             in_flight=lambda: target.client.num_in_flight)
        for remark in self._remarks:
            self._progress.say(remark)
        try:
            self._watch.start()
            is_first = True
            while (upcoming := self._agenda.upcoming(self._cells)) and self._stop_reason is None:
                if not is_first:
                    if not budget.has_time():
                        break
                    self._keep_what_there_is(target, start_ns)
                is_first = False
                trial, spec = upcoming[0]
                deadline_ns = budget.deadline_ns([spec for _, spec in upcoming])
                await self._measure_trial(spec, trial, target, start_ns, deadline_ns, budget, crew)
            while self._stop_reason is None and (cut := self._next_cut(budget)) is not None:
                self._keep_what_there_is(target, start_ns)
                self._progress.say(f"there is time left for all of {cut.spec.id}, which was cut short")
                await self._measure_trial(cut.spec, cut.trial, target, start_ns, budget.end_ns, budget, crew)
            self._watch.stop()
            result = self._result(target, start_ns)
            if result.series or result.series_missing != self._missing or self._earlier is not None:
                result = recompute(result)  # readings came after their cell; earlier figures are another version's
            return _audited(result)
        finally:
            self._watch.close()
            self._progress.stop()
            target.client.close()
            crew.pool.close()

    def _next_cut(self, budget: Budget) -> CutTrial | None:
        """A trial that was cut short and for which there is time after all; it is taken from the list."""
        found = next((c for c in self._cut if budget.has_room_for(c.spec, at_least_s=c.whole_s)), None)
        if found is not None:
            self._cut.remove(found)
        return found

    async def _measure_trial(self, spec: CellSpec, trial: int, target: Target, start_ns: int,
                             deadline_ns: int | None, budget: Budget, crew: Crew) -> None:
        """Measures a trial and its cell's figures. A second attempt counts in place of the first if it got further."""
        self._progress.cell_started(spec)
        before = self._outcomes[spec.id].get(trial)
        began_ns = now_ns()
        try:
            while True:
                means = Means(crew.pool, crew.num_workers, on_end=self._count, on_pulse=self._progress.pulse)
                seed = self._seed + (before is not None)  # what was sent already must not come again
                outcome = await run_trial(spec, target, means, seed=seed, trial=trial, epoch_ns=start_ns,
                                          deadline_ns=deadline_ns)
                if outcome.stop_reason is not None or not crew.grow_for(outcome.client):
                    break
        except asyncio.CancelledError:  # Ctrl-C between two loads; within one, the load keeps what has ended
            self._stop_reason = "interrupted"
            return
        wanted, seconds = (spec.load.num_requests or 1) + spec.num_warmup, (now_ns() - began_ns) / 1e9
        share_done = min(len(outcome.records) / wanted, 1.0)
        budget.learn(spec, seconds, share_done)
        if before is None and outcome.stop_reason == BUDGET_SPENT and self._agenda.goes_back:
            self._cut.append(CutTrial(trial, spec, seconds / max(share_done, 1e-6)))
        if before is None or len(outcome.records) > len(before.records):
            self._file_trial(spec, trial, outcome, start_ns)
        if outcome.was_cancelled:
            self._stop_reason = "interrupted"
        elif outcome.is_server_failing and not (self._agenda.expects_failures and _last_error(outcome) != "connect"):
            self._stop_reason = f"the server failed in cell {spec.id}: {_failure_line(outcome)}"
        self._progress.cell_ended(self._cells[spec.id])

    def _file_trial(self, spec: CellSpec, trial: int, outcome: TrialOutcome, start_ns: int) -> None:
        """Puts a trial, in place of an earlier attempt at it, among the requests and into its cell."""
        if trial in self._outcomes[spec.id]:
            self._requests = [r for r in self._requests if (r.cell, r.trial) != (spec.id, trial)]
            self._measured[spec.id] = [r for r in self._measured[spec.id] if r.trial != trial]
        self._outcomes[spec.id][trial] = outcome
        self._file_requests(outcome.records)
        cell = self._earlier_cells.get(spec.id, spec.empty())
        for number, each in sorted(self._outcomes[spec.id].items()):
            cell = join_trial(cell, each, number)
        series, self._missing = self._series(start_ns)
        cell = summarize(cell, self._measured[spec.id], analysis=self._analysis, series=series,
                         series_missing=self._missing)
        error = nearest(self._client_errors, cell.concurrency or cell.peak_in_flight)
        self._cells[spec.id] = msgspec.structs.replace(
            cell, client=msgspec.structs.replace(cell.client, calibration=error))

    def _count(self, planned: Planned, exchange: Exchange) -> None:
        if not planned.is_warmup:
            self._progress.request_ended(exchange)

    def _file_requests(self, records: Sequence[RequestRecord]) -> None:
        self._requests += records
        for record in records:
            if not record.is_warmup:
                self._measured[record.cell].append(record)

    def _series(self, start_ns: int) -> tuple[list[Series], list[str]]:
        """What was watched, in the run that this one goes on with too, and what could not be."""
        series, missing = self._watch.read(start_ns)
        return (series if self._earlier is None else join_series([*self._earlier.series, *series])), missing

    def _keep_what_there_is(self, target: Target, start_ns: int) -> None:
        """After every trial, but of a large result not so often that the run would spend its time on it."""
        if self._keep is None or now_ns() < self._keep_after_ns:
            return
        began_ns = now_ns()
        try:
            self._keep(_audited(self._result(target, start_ns, is_running=True)))
        except ConfigError as error:  # such as a full disk: it may be mended before the run ends
            self._progress.say(f"not kept so far: {error}")
        seconds = (now_ns() - began_ns) / 1e9
        if seconds > QUICK_KEEP_S:
            self._keep_after_ns = now_ns() + round(seconds * 1e9 / MAX_KEEP_SHARE)

    def _result(self, target: Target, start_ns: int, *, is_running: bool = False) -> RunResult:
        cells = list(self._cells.values())
        num_trials = self._options.num_trials
        skipped = self._agenda.missing(self._cells)
        search = self._agenda.conclude(self._cells)
        has_ended = not is_running and self._stop_reason is None
        is_whole = has_ended and not skipped and (search is None or search.is_settled) and all(
            c.status == "complete" and c.num_trials >= num_trials for c in cells)
        series, missing = self._series(start_ns)
        return RunResult(
            schema=SCHEMA, kind=self._kind, status="complete" if is_whole else "partial",
            stop_reason="not ended yet" if is_running else self._stop_reason, environment=self._environment,
            analysis=self._analysis, series=series, series_missing=missing,
            target=target.info, workload=self._workload(target),
            duration_s=(now_ns() - start_ns) / 1e9, cells=cells, skipped_cells=skipped, search=search,
            findings=[], metrics=[m.describe() for m in all_metrics()], requests=list(self._requests))

    def _workload(self, target: Target) -> Workload:
        options = self._options
        return Workload(
            loads=self._agenda.loads(), prompt_tokens=as_text(options.prompt_tokens),
            output_tokens=as_text(options.output_tokens), num_warmup=options.num_warmup,
            num_trials=options.num_trials, temperature=options.temperature, fixed_output=options.fixed_output,
            seed=self._seed, request_timeout_s=options.request_timeout,
            duration_budget_s=getattr(options, "duration_budget", None),
            prompts="; ".join([describe(options.prompt_spec), *self._remarks]), prompt_spec=options.prompt_spec,
            session=session_of(options),
            cancellation_delay_s=options.cancellation_delay if options.cancellation_rate else None,
            first_tokens_unique=target.prompts.first_tokens_unique,
            trial_first_tokens_unique=target.prompts.trial_first_tokens_unique)


def _audited(result: RunResult) -> RunResult:
    return msgspec.structs.replace(result, findings=audit(result))


def _num_connections(load: LoadSpec) -> int:
    """File descriptors that a load may need at once."""
    if load.is_closed:
        return load.concurrency
    return min(load.max_in_flight or DEFAULT_MAX_IN_FLIGHT, MOST_OPEN_CONNECTIONS)


def join_trial(cell: CellResult, outcome: TrialOutcome, trial: int) -> CellResult:
    """The cell with one more trial: of the client's load the worst and all stalls, of reasons to stop the first."""
    client = outcome.client
    if cell.client is not None:
        lags = [c.loop_lag_p99_us for c in (cell.client, client) if c.loop_lag_p99_us is not None]
        longest = [c.loop_lag_max_us for c in (cell.client, client) if c.loop_lag_max_us is not None]
        shares = [max(pair) for pair in itertools.zip_longest(cell.client.cpu_share, client.cpu_share, fillvalue=0.0)]
        client = msgspec.structs.replace(client, num_workers=max(cell.client.num_workers, client.num_workers),
                                         cpu_share=shares, loop_lag_p99_us=max(lags, default=None),
                                         loop_lag_max_us=max(longest, default=None),
                                         stalls=[*cell.client.stalls, *client.stalls],
                                         clock_jump_us=max(cell.client.clock_jump_us, client.clock_jump_us))
    return msgspec.structs.replace(cell, num_trials=trial + 1, client=client, num_held=cell.num_held + outcome.num_held,
                                   stop_reason=cell.stop_reason or outcome.stop_reason)


def execute(run: Run) -> RunResult:
    """Measures in an event loop of its own. The first Ctrl-C ends the run and keeps what was measured."""
    return event_loop.run(run.measure())


def raise_if_failed(result: RunResult, kept_in: str | None) -> None:
    """Turns a failed run into its one line.

    Raises:
        ServerError: the server failed, or refused every request of a cell.
    """
    place = f"; what was measured is kept in {kept_in}" if kept_in else ""
    if result.stop_reason is not None and result.stop_reason != "interrupted":
        raise ServerError(f"{result.stop_reason}{place}")
    if result.search is not None and result.search.best is not None:
        return  # what failed was meant to find the limit
    refused = [c for c in result.cells if c.num_done and sum(c.errors.values()) == c.num_done]
    refused += [c for c in result.cells if not c.num_done and c.stop_reason not in (None, "interrupted")]
    if refused:
        reason = refused[0].stop_reason or ", ".join(f"{n} × {kind}" for kind, n in refused[0].errors.items())
        raise ServerError(f"every request failed in cell {', '.join(c.id for c in refused)}: {reason}{place}")


def _last_error(outcome: TrialOutcome) -> str:
    return next(r.error for r in reversed(outcome.records) if r.error is not None)


def _failure_line(outcome: TrialOutcome) -> str:
    last = next(r for r in reversed(outcome.records) if r.error is not None)
    return f"{last.error} ({last.error_message})"


def command_line(kind: str, options: TargetOptions) -> str:
    """The command that asks for the same run; the key is left out."""
    words = ["pelton", "bench", kind, options.url]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in ("url", "api_key", "json", "output_format") or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
