"""One trial of a cell: requests made beforehand, warm-up, the load, and the records of what came back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from pelton.bench.cell import CellSpec
from pelton.bench.client import now_ns
from pelton.bench.conversation import ChatVoice, Scripts, VoiceSpec, num_sessions
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import no_garbage_collection, run_load
from pelton.bench.load.sessions import Script, run_conversations
from pelton.bench.load.shapes import Shape, make_shapes
from pelton.bench.load.tally import LoadResult, OnEnd
from pelton.bench.percentiles import percentile
from pelton.bench.record import make_record
from pelton.bench.results import ClientLoad, LoadSpec, RequestRecord, Stall
from pelton.bench.target import Target
from pelton.bench.workers.pool import OnPulse, WorkerPool, join

MIN_FAILURES_TO_STOP = 4
LEAD_NS = 20_000_000  # from the end of the preparations to time 0 of an open loop
MAX_PREPARED = 20_000  # requests of a closed loop that goes by time; later ones are made as they are needed
SPARE = 4  # times the requests expected, for other processes cannot make more and the first request may be slow
DEFAULT_MAX_IN_FLIGHT = 4096
OPEN_CONNECTIONS = 32  # of an open loop, before it begins
RAN_OUT = "the requests made beforehand ran out; give fewer workers or a number of requests"


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


@dataclass(frozen=True)
class Means:
    """By what a trial is sent, and who is told."""

    pool: WorkerPool
    num_workers: int = 1
    on_end: OnEnd | None = None
    """Told of every exchange of this process as it ends."""
    on_pulse: OnPulse | None = None
    """Told now and then what other processes saw of their requests."""


async def run_trial(spec: CellSpec, target: Target, means: Means, *, seed: int, trial: int = 0, epoch_ns: int,
                    deadline_ns: int | None = None) -> TrialOutcome:
    """Measures one trial of a cell.

    Args:
        seed: of the prompts, arrivals and cancellations, together with the cell and the trial.
        epoch_ns: beginning of the run on the benchmark's clock.
        deadline_ns: when to start no more requests.
    """
    with no_garbage_collection():  # which would walk through all requests kept so far, again and again
        results = await _Sender(spec, target, means, f"{seed}/{spec.id}/{trial}", deadline_ns).send()
        result = join(results)
        records = [make_record(planned, exchange, target, cell=spec.id, trial=trial, is_stream=spec.is_stream,
                               epoch_ns=epoch_ns) for planned, exchange in result.sent]
    records.sort(key=lambda r: (not r.is_warmup, r.index))
    return TrialOutcome(records, _client_load(results, trial, epoch_ns), result.num_held, _stop_reason(result, records),
                        result.was_cancelled, _is_server_failing(result, records))


class _Sender:
    """Makes a trial's requests, or its conversations, and sends them; each way gives one result per process."""

    def __init__(self, spec: CellSpec, target: Target, means: Means, name: str, deadline_ns: int | None) -> None:
        self._spec = spec
        self._target = target
        self._means = means
        self._job = make_job(spec.load, deadline_ns=deadline_ns, give_up_s=target.client.timeout_s)
        load, session = spec.load, spec.session
        self._texts = target.trial_prompts(spec.content, seed=name, num_turns=session.num_turns if session else 1)
        self._voice_spec: VoiceSpec | None = None
        self._make: Callable[[Shape], Planned | Script] = self._plan
        if session is not None:
            self._voice_spec = VoiceSpec.of(target.dialect, is_stream=spec.is_stream)
            self._voice = ChatVoice(self._voice_spec, target.client)
            self._scripts = Scripts(session, target, self._texts, self._voice, num_requests=load.num_requests,
                                    seed=name)
            self._make = self._scripts.make
            load = msgspec.structs.replace(load, num_requests=num_sessions(load.num_requests, session.num_turns))
        self._shapes = make_shapes(
            load, sizes=self._texts.sizes(spec.prompt_tokens, spec.output_tokens), num_warmup=spec.num_warmup,
            is_stream=spec.is_stream, trace=spec.trace, seed=name, cancellation_delay_s=spec.cancellation_delay_s)

    async def send(self) -> list[LoadResult]:
        load = self._spec.load
        if load.is_closed and load.num_requests is None:
            results = await self._send_by_time()
        else:
            results = await self._send_all([self._make(shape) for shape in self._shapes])
        if self._voice_spec is not None:
            self._scripts.count(results)
        return results

    async def _send_by_time(self) -> list[LoadResult]:
        """A closed loop of which nobody knows how many requests it takes."""
        pilot = await self._run_pilot()
        if pilot.was_cancelled:
            return [pilot]
        num_wanted = _num_wanted(self._spec, pilot) * (SPARE if self._means.num_workers > 1 else 1)
        prepared = [self._make(shape) for shape in itertools.islice(self._shapes, min(num_wanted, MAX_PREPARED))]
        results = await self._send_all(prepared, more=map(self._make, self._shapes))
        if len(results) > 1 and sum(_is_beginning(p) for result in results for p, _ in result.sent) >= len(prepared):
            results[0].stop_reason = results[0].stop_reason or RAN_OUT
        results[0].sent = pilot.sent + results[0].sent
        return results

    async def _run_pilot(self) -> LoadResult:
        """One request alone, as warm-up: nothing in a batch is answered faster, so it tells how many can be needed."""
        spec = self._spec
        shape = Shape(index=-1, is_warmup=True, prompt_tokens=spec.prompt_tokens, output_tokens=spec.output_tokens)
        await self._get_ready(1)
        return await run_load(LoadJob(concurrency=1, deadline_ns=self._job.deadline_ns), [self._plan(shape)],
                              self._target.client.send)

    async def _send_all(self, prepared: list[Planned] | list[Script], *, more: Iterable[Planned | Script] = ()
                        ) -> list[LoadResult]:
        """Sends what is prepared, from several processes or from this one; only this one can make `more`."""
        means, job, client = self._means, self._job, self._target.client
        num_workers = min(means.num_workers, job.concurrency or means.num_workers)
        if num_workers > 1:
            return await means.pool.run(job, prepared, num_workers=num_workers, voice=self._voice_spec,
                                        on_pulse=means.on_pulse)
        await self._get_ready(min(job.concurrency or OPEN_CONNECTIONS, len(prepared)))
        units = itertools.chain(prepared, more)
        if self._voice_spec is None:
            return [await run_load(job, units, client.send, on_end=means.on_end)]
        return [await run_conversations(job, units, self._voice, client.send, on_end=means.on_end)]

    async def _get_ready(self, num_connections: int) -> None:
        await self._target.client.open_connections(num_connections)
        self._job.start_ns = now_ns() + LEAD_NS

    def _plan(self, shape: Shape) -> Planned:
        """Makes a request's prompt and bytes."""
        target = self._target
        prompt = self._texts.make(shape.prompt_tokens, entry=shape.entry, blocks=shape.blocks)
        num_tokens = prompt.num_tokens + target.info.frame_correction_tokens
        return Planned(
            index=shape.index, is_warmup=shape.is_warmup, due_ns=shape.due_ns, stage=shape.stage,
            request=target.request(prompt, output_tokens=shape.output_tokens, stream=self._spec.is_stream),
            requested_prompt_tokens=shape.prompt_tokens or num_tokens, requested_output_tokens=shape.output_tokens,
            client_prompt_tokens=num_tokens, prefix_tokens=max(shape.prefix_tokens, prompt.prefix_tokens),
            cancel_after_events=shape.cancel_after_events, cancel_after_ns=shape.cancel_after_ns)


def make_job(load: LoadSpec, *, deadline_ns: int | None, give_up_s: float) -> LoadJob:
    """The job of a single client process."""
    concurrency = load.concurrency if load.is_closed else None
    return LoadJob(concurrency=concurrency, deadline_ns=deadline_ns, ramp_up_ns=round((load.ramp_up_s or 0) * 1e9),
                   duration_ns=None if load.duration_s is None else round(load.duration_s * 1e9),
                   stages=load.stages if load.kind == "closed_stages" else [],
                   max_in_flight=load.max_in_flight or DEFAULT_MAX_IN_FLIGHT, give_up_ns=round(give_up_s * 1e9),
                   max_failures_in_a_row=max(MIN_FAILURES_TO_STOP, concurrency or 1))


def _is_beginning(planned: Planned) -> bool:
    """A single request, or a conversation's first turn."""
    return not planned.turn


def _num_wanted(spec: CellSpec, pilot: LoadResult) -> int:
    """Requests, or conversations, that a closed loop can get through in its time."""
    least_s = max(min(((e.end_ns - e.sent_ns) / 1e9 for _, e in pilot.sent if e.failure is None), default=1.0), 1e-4)
    load = spec.load
    wanted = sum(s.num_requests or s.most_in_flight * (s.duration_s / least_s + 2) for s in load.stages)
    if load.duration_s is not None:
        by_time = load.concurrency * (load.duration_s / least_s + 2)
        wanted = min(wanted, by_time) if load.stages else by_time
    num_turns = 1 if spec.session is None else spec.session.num_turns
    return spec.num_warmup + math.ceil(wanted / num_turns)


def _client_load(results: Sequence[LoadResult], trial: int, epoch_ns: int) -> ClientLoad:
    lags = sorted(lag for result in results for lag in result.loop_lags_us)
    stalls = [Stall(trial=trial, worker=worker, start_us=(start - epoch_ns) // 1000, end_us=(end - epoch_ns) // 1000)
              for worker, result in enumerate(results) for start, end in result.stalls_ns]
    return ClientLoad(num_workers=len(results), cpu_share=[round(r.cpu_share, 4) for r in results],
                      loop_lag_p99_us=percentile(lags, 99) if lags else None,
                      loop_lag_max_us=lags[-1] if lags else None,
                      stalls=stalls, clock_jump_us=max(r.clock_jump_us for r in results))


def _stop_reason(result: LoadResult, records: list[RequestRecord]) -> str | None:
    if not result.is_server_failing and (result.stop_reason is not None or not _is_server_failing(result, records)):
        return result.stop_reason
    last = next((r for r in reversed(records) if r.error is not None), None)
    what = result.stop_reason or "every request failed"
    return what if last is None else f"{what} ({last.error}: {last.error_message})"


def _is_server_failing(result: LoadResult, records: list[RequestRecord]) -> bool:
    """A server that refuses a request's content (4xx) may well take the next cell's; any other failure stays."""
    measured = [r for r in records if not r.is_warmup]
    failed_all = bool(measured) and all(r.error is not None for r in measured)
    if not (result.is_server_failing or failed_all):
        return False
    last = next(r for r in reversed(records) if r.error is not None)
    return not last.error.startswith("http_4")
