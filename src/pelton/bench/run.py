"""A run: open the target, measure the cells one after another, audit, keep what there is whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import shlex
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from pelton.bench import prompts
from pelton.bench.audit import audit
from pelton.bench.cell import CellOutcome, CellSpec, closed, run_cell
from pelton.bench.client import allow_connections, now_ns
from pelton.bench.environment import describe_environment
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.options import ServeOptions, SweepOptions, TargetOptions
from pelton.bench.progress import Progress
from pelton.bench.results import SCHEMA, CellResult, RequestRecord, RunResult, Workload
from pelton.bench.target import Target, open_target
from pelton.errors import ServerError

Keep = Callable[[RunResult], None]


class Run:
    """The cells of one command, measured in order."""

    def __init__(self, kind: Literal["serve", "sweep"], options: ServeOptions | SweepOptions,
                 specs: Sequence[CellSpec], *, progress: Progress, keep: Keep | None = None) -> None:
        """`keep` is given the result so far after every cell, so that a crash loses one cell at most."""
        self._kind = kind
        self._options = options
        self._specs = list(specs)
        self._progress = progress
        self._keep = keep
        self._environment = describe_environment(command_line(kind, options))
        self._seed = secrets.randbits(32) if options.seed is None else options.seed
        self._cells: list[CellResult] = []
        self._requests: list[RequestRecord] = []
        self._skipped: list[str] = []
        self._stop_reason: str | None = None

    async def measure(self) -> RunResult:
        """Runs all cells. An interrupt or a failing server ends the run early; the result says so.

        Raises:
            PeltonError: nothing could be measured at all.
        """
        allow_connections(max(spec.concurrency for spec in self._specs))
        target = await open_target(self._options, seed=self._seed)
        for spec in self._specs:
            target.prompts.check(spec.prompt_tokens)
        start_ns = now_ns()
        budget = getattr(self._options, "duration_budget", None)
        end_ns = None if budget is None else start_ns + round(budget * 1e9)
        self._progress.start(len(self._specs), target.info)
        try:
            for number, spec in enumerate(self._specs):
                if self._stop_reason is not None or not self._has_time(end_ns, number):
                    self._skipped.append(spec.id)
                    continue
                try:
                    await self._measure_cell(spec, target, start_ns, _deadline(end_ns, self._specs[number:]))
                except asyncio.CancelledError:  # Ctrl-C between two loads; within one, the load keeps what has ended
                    self._stop_reason = "interrupted"
                    self._skipped.append(spec.id)
                if self._keep is not None and number + 1 < len(self._specs):
                    self._keep(self._result(target, start_ns, is_running=True))
        finally:
            self._progress.stop()
            target.client.close()
        return self._result(target, start_ns)

    def _has_time(self, end_ns: int | None, number: int) -> bool:
        return number == 0 or end_ns is None or now_ns() < end_ns

    async def _measure_cell(self, spec: CellSpec, target: Target, start_ns: int, deadline_ns: int | None) -> None:
        self._progress.cell_started(spec)
        outcome: CellOutcome = await run_cell(spec, target, epoch_ns=start_ns, deadline_ns=deadline_ns,
                                              on_end=self._progress.request_ended)
        self._cells.append(outcome.cell)
        self._requests += outcome.records
        if outcome.was_cancelled:
            self._stop_reason = "interrupted"
        elif outcome.is_server_failing:
            self._stop_reason = f"the server failed in cell {spec.id}: {_failure_line(outcome)}"
        self._progress.cell_ended(outcome.cell)

    def _result(self, target: Target, start_ns: int, *, is_running: bool = False) -> RunResult:
        is_whole = not is_running and not self._skipped and all(c.status == "complete" for c in self._cells)
        result = RunResult(
            schema=SCHEMA, kind=self._kind, status="complete" if is_whole else "partial",
            stop_reason="not ended yet" if is_running else self._stop_reason, environment=self._environment,
            target=target.info, workload=_workload(self._options, self._seed, target),
            duration_s=(now_ns() - start_ns) / 1e9, cells=list(self._cells), skipped_cells=list(self._skipped),
            findings=[], metrics=[m.describe() for m in all_metrics()], requests=list(self._requests))
        return msgspec.structs.replace(result, findings=audit(result))


def execute(run: Run) -> RunResult:
    """Measures in an event loop of its own. The first Ctrl-C ends the run and keeps what was measured."""
    return asyncio.run(run.measure())


def raise_if_failed(result: RunResult, kept_in: str | None) -> None:
    """Turns a failed run into its one line.

    Raises:
        ServerError: the server failed, or refused every request of a cell.
    """
    place = f"; what was measured is kept in {kept_in}" if kept_in else ""
    if result.stop_reason is not None and result.stop_reason != "interrupted":
        raise ServerError(f"{result.stop_reason}{place}")
    refused = [c for c in result.cells if c.num_done and sum(c.errors.values()) == c.num_done]
    refused += [c for c in result.cells if not c.num_done and c.stop_reason not in (None, "interrupted")]
    if refused:
        reason = refused[0].stop_reason or ", ".join(f"{n} × {kind}" for kind, n in refused[0].errors.items())
        raise ServerError(f"every request failed in cell {', '.join(c.id for c in refused)}: {reason}{place}")


def _failure_line(outcome: CellOutcome) -> str:
    last = next(r for r in reversed(outcome.records) if not r.is_ok)
    return f"{last.error} ({last.error_message})"


def _deadline(end_ns: int | None, specs: Sequence[CellSpec]) -> int | None:
    """When the first of these cells must stop: its share of the time left by weight; what it saves goes to the rest."""
    if end_ns is None:
        return None
    now = now_ns()
    return now + round(max(end_ns - now, 0) * specs[0].weight / sum(spec.weight for spec in specs))


def command_line(kind: str, options: TargetOptions) -> str:
    """The command that asks for the same run; the key is left out."""
    words = ["pelton", "bench", kind, options.url]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in ("url", "api_key", "json") or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _workload(options: ServeOptions | SweepOptions, seed: int, target: Target) -> Workload:
    sizes = options.prompt_tokens
    return Workload(
        loads=[closed(c, options.num_requests) for c in options.concurrency],
        prompt_tokens=[sizes] if isinstance(sizes, int) else list(sizes), output_tokens=[options.output_tokens],
        num_warmup=options.num_warmup,
        temperature=options.temperature, fixed_output=options.fixed_output, seed=seed,
        request_timeout_s=options.request_timeout, duration_budget_s=getattr(options, "duration_budget", None),
        prompts=prompts.DESCRIPTION, first_tokens_unique=target.prompts.first_tokens_unique)
