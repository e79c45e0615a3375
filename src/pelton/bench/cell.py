"""One cell: requests made beforehand, warm-up, the load, and the records and figures of what came back."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from pelton.bench.client import now_ns
from pelton.bench.conversation import SessionSpec, num_sessions, run_conversations
from pelton.bench.load.options import LoadOptions
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import no_garbage_collection, run_load
from pelton.bench.load.shapes import Shape, make_shapes
from pelton.bench.load.tally import LoadResult, OnEnd
from pelton.bench.load.trace import TraceRequest
from pelton.bench.percentiles import percentile
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.trial import AS_SIZED, Content, TrialPrompts
from pelton.bench.record import make_record
from pelton.bench.results import CellResult, ClientLoad, LoadSpec, RequestRecord
from pelton.bench.summary import empty_cell
from pelton.bench.target import Target
from pelton.bench.workers.pool import WorkerPool, join

MIN_FAILURES_TO_STOP = 4
LEAD_NS = 20_000_000  # from the end of the preparations to time 0 of an open loop
MAX_PREPARED = 20_000  # requests of a closed loop that goes by time; later ones are made as they are needed
DEFAULT_MAX_IN_FLIGHT = 4096
OPEN_WARMUP_S = 2.0
RAN_OUT = "the requests made beforehand ran out; give fewer workers or a number of requests"


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What a cell is asked to measure."""

    load: LoadSpec
    prompt_tokens: int
    output_tokens: int
    num_warmup: int
    """Unmeasured requests at the beginning of each trial."""
    is_stream: bool
    content: Content = AS_SIZED
    """What the prompts are made of, and sizes that vary."""
    trace: Sequence[TraceRequest] = ()
    session: SessionSpec | None = None
    """Conversations instead of single requests; the loads then count and start conversations."""
    cancellation_delay_s: float | None = None
    """Cancelled requests are given up within so long; none: after a random number of chunks."""

    def check(self, prompts: PromptFactory) -> None:
        """Raises a ConfigError when there are no prompts of a size asked for."""
        if self.trace:
            prompts.check(min(r.prompt_tokens for r in self.trace))
        else:
            self.content.check(prompts, self.prompt_tokens)

    @property
    def id(self) -> str:
        kind = "" if self.is_stream else "-whole"
        sizes = "" if self.trace else f"-{self.content.key or f'p{self.prompt_tokens}-o{self.output_tokens}'}"
        if self.session is not None:
            sizes += f"-t{self.session.num_turns}"
        return f"{self.load.key}{sizes}{kind}"

    def empty(self) -> CellResult:
        """The cell before anything was measured."""
        return empty_cell(self.id, self.load, prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens,
                          is_stream=self.is_stream,
                          has_fixed_sizes=not self.trace and self.session is None and self.content.has_fixed_sizes)


def closed(concurrency: int, num_requests: int | None, *, duration_s: float | None = None,
           cancellation_rate: float = 0.0) -> LoadSpec:
    """A closed loop, by count or by time."""
    return LoadSpec(kind="closed", concurrency=concurrency, num_requests=num_requests, duration_s=duration_s,
                    cancellation_rate=cancellation_rate)


def session_of(options: LoadOptions) -> SessionSpec | None:
    """The conversations that the options ask for; none for single requests."""
    if options.session_turns == 1:
        return None
    return SessionSpec(num_turns=options.session_turns, turn_tokens=options.session_turn_tokens,
                       think_time_s=options.think_time)


def default_warmup(load: LoadSpec) -> int:
    """One request per slot; two seconds' worth of arrivals; none where the arrivals are given one by one."""
    if load.kind == "closed":
        return load.concurrency
    return max(round(load.rate * OPEN_WARMUP_S), 1) if load.rate else 0


@dataclass(frozen=True)
class TrialOutcome:
    """One trial of a cell: its requests, warm-up included, and how it ended."""

    records: list[RequestRecord]
    client: ClientLoad
    num_held: int
    stop_reason: str | None
    was_cancelled: bool
    is_server_failing: bool
    """The server does not answer any more, or not as a server should; further cells make no sense."""


async def run_trial(spec: CellSpec, target: Target, *, seed: int, trial: int = 0, epoch_ns: int,
                    deadline_ns: int | None = None, on_end: OnEnd | None = None, pool: WorkerPool | None = None,
                    num_workers: int = 1) -> TrialOutcome:
    """Measures one trial of a cell, from this process or from several of a pool.

    Args:
        seed: of the arrivals and cancellations, together with the cell and the trial.
        epoch_ns: beginning of the run on the benchmark's clock.
        deadline_ns: when to start no more requests.
        on_end: told of every exchange as it ends; not of those of other processes.
    """
    with no_garbage_collection():  # which would walk through all requests kept so far, again and again
        return await _run_trial(spec, target, name=f"{seed}/{spec.id}/{trial}", trial=trial, epoch_ns=epoch_ns,
                                deadline_ns=deadline_ns, on_end=on_end, pool=pool, num_workers=num_workers)


async def _run_trial(spec: CellSpec, target: Target, *, name: str, trial: int, epoch_ns: int, deadline_ns: int | None,
                     on_end: OnEnd | None, pool: WorkerPool | None, num_workers: int) -> TrialOutcome:
    load = spec.load
    if spec.session is not None:
        load = msgspec.structs.replace(load, num_requests=num_sessions(load.num_requests, spec.session.num_turns))
    texts = target.trial_prompts(spec.content, seed=name)
    plan = functools.partial(_plan, spec, target, texts)
    shapes = make_shapes(load, sizes=texts.sizes(spec.prompt_tokens, spec.output_tokens), num_warmup=spec.num_warmup,
                         is_stream=spec.is_stream, trace=spec.trace, seed=name,
                         cancellation_delay_s=spec.cancellation_delay_s)
    pilot = LoadResult()
    prepared: list[Planned] = []
    requests: Iterator[Planned] = iter(())
    if spec.session is not None:
        pass  # conversations make their requests as they go
    elif spec.load.kind == "closed" and spec.load.num_requests is None:
        pilot = await _run_pilot(spec, target, plan, deadline_ns)
        prepared = [plan(shape) for shape in itertools.islice(shapes, _num_wanted(spec, pilot))]
        requests = itertools.chain(prepared, map(plan, shapes))
    else:
        prepared = [plan(shape) for shape in shapes]
        requests = iter(prepared)
    job = make_job(spec.load, deadline_ns=deadline_ns, give_up_s=target.client.timeout_s)
    if pilot.was_cancelled:
        results = [pilot]
    elif spec.session is not None:
        await target.client.open_connections(job.concurrency or 1)
        job.start_ns = now_ns() + LEAD_NS
        results = [pilot, await run_conversations(spec.session, job, shapes, target, seed=name, on_end=on_end,
                                                  num_requests=spec.load.num_requests, is_stream=spec.is_stream)]
    elif pool is not None and num_workers > 1:
        results = [pilot, *await pool.run(job, prepared, num_workers=min(num_workers, job.concurrency or num_workers))]
    else:
        await target.client.open_connections(min(job.concurrency or 1, len(prepared)))
        job.start_ns = now_ns() + LEAD_NS
        results = [pilot, await run_load(job, requests, target.client.send, on_end=on_end)]
    result = join(results)
    if len(results) > 2 and spec.load.num_requests is None and len(result.sent) > len(prepared):  # + the pilot
        result.stop_reason = result.stop_reason or RAN_OUT
    records = [make_record(planned, exchange, target, cell=spec.id, trial=trial, is_stream=spec.is_stream,
                           epoch_ns=epoch_ns) for planned, exchange in result.sent]
    records.sort(key=lambda r: (not r.is_warmup, r.index))
    return TrialOutcome(records, _client_load(results[1:] or results), result.num_held, _stop_reason(result, records),
                        result.was_cancelled, _is_server_failing(result, records))


def make_job(load: LoadSpec, *, deadline_ns: int | None, give_up_s: float) -> LoadJob:
    """The job of a single client process."""
    concurrency = load.concurrency if load.kind == "closed" else None
    return LoadJob(concurrency=concurrency, deadline_ns=deadline_ns,
                   duration_ns=None if load.duration_s is None else round(load.duration_s * 1e9),
                   max_in_flight=load.max_in_flight or DEFAULT_MAX_IN_FLIGHT, give_up_ns=round(give_up_s * 1e9),
                   max_failures_in_a_row=max(MIN_FAILURES_TO_STOP, concurrency or 1))


def _plan(spec: CellSpec, target: Target, texts: TrialPrompts, shape: Shape) -> Planned:
    """Makes a request's prompt and bytes."""
    prompt = texts.make(shape.prompt_tokens, entry=shape.entry, blocks=shape.blocks)
    num_tokens = prompt.num_tokens + target.info.frame_correction_tokens
    dialect = dataclasses.replace(target.dialect, output_tokens=shape.output_tokens)
    return Planned(
        index=shape.index, is_warmup=shape.is_warmup, due_ns=shape.due_ns, stage=shape.stage,
        request=target.client.build("POST", dialect.route, dialect.body(prompt, stream=spec.is_stream)),
        requested_prompt_tokens=shape.prompt_tokens or num_tokens, requested_output_tokens=shape.output_tokens,
        client_prompt_tokens=num_tokens, prefix_tokens=max(shape.prefix_tokens, prompt.prefix_tokens),
        cancel_after_events=shape.cancel_after_events, cancel_after_ns=shape.cancel_after_ns)


async def _run_pilot(spec: CellSpec, target: Target, plan: Callable[[Shape], Planned],
                     deadline_ns: int | None) -> LoadResult:
    """One request alone, as warm-up: nothing in a batch is answered faster, so it tells how many can be needed."""
    shape = Shape(index=-1, is_warmup=True, prompt_tokens=spec.prompt_tokens, output_tokens=spec.output_tokens)
    await target.client.open_connections(1)
    return await run_load(LoadJob(concurrency=1, deadline_ns=deadline_ns), [plan(shape)],
                          target.client.send)


def _num_wanted(spec: CellSpec, pilot: LoadResult) -> int:
    """Requests that a closed loop can get through in its time."""
    least_s = min(((e.end_ns - e.sent_ns) / 1e9 for _, e in pilot.sent if e.failure is None), default=1.0)
    wanted = spec.load.concurrency * (spec.load.duration_s / max(least_s, 1e-4) + 2)
    return spec.num_warmup + min(round(wanted), MAX_PREPARED)


def _client_load(results: Sequence[LoadResult]) -> ClientLoad:
    lags = sorted(lag for result in results for lag in result.loop_lags_us)
    return ClientLoad(num_workers=len(results), cpu_share=[round(r.cpu_share, 4) for r in results],
                      loop_lag_p99_us=percentile(lags, 99) if lags else None,
                      clock_jump_us=max(r.clock_jump_us for r in results))


def _stop_reason(result: LoadResult, records: list[RequestRecord]) -> str | None:
    last = next((r for r in reversed(records) if r.error is not None), None)
    if result.is_server_failing and last is not None:
        return f"{result.stop_reason} ({last.error}: {last.error_message})"
    return result.stop_reason


def _is_server_failing(result: LoadResult, records: list[RequestRecord]) -> bool:
    """A server that refuses a request's content (4xx) may well take the next cell's; any other failure stays."""
    measured = [r for r in records if not r.is_warmup]
    failed_all = bool(measured) and all(r.error is not None for r in measured)
    if not (result.is_server_failing or failed_all):
        return False
    last = next(r for r in reversed(records) if r.error is not None)
    return not last.error.startswith("http_4")
