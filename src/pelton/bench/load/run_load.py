"""Runs one process's part of a load and watches the process while it does."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from pelton.bench.client import Exchange, now_ns
from pelton.bench.load.closed_loop import run_closed_loop
from pelton.bench.load.loop_watch import watched_loop
from pelton.bench.load.open_loop import run_open_loop
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.staged_loop import run_staged_loop
from pelton.bench.load.tally import LoadResult, OnEnd, Tally
from pelton.bench.load.unit import Unit

U = TypeVar("U", bound=Unit)


class Send(Protocol):
    """How a request is sent; `Client.send` is one."""

    def __call__(self, request: bytes, *, cancel_after_events: int | None = None,
                 cancel_after_ns: int | None = None) -> Awaitable[Exchange]: ...


async def run_load(job: LoadJob, requests: Iterable[Planned], send: Send, *, on_end: OnEnd | None = None) -> LoadResult:
    """Sends the requests as the job says. `on_end` is told of each as it ends.

    A cancelled load returns what had ended; requests in flight are lost and not counted.
    """
    async def perform(planned: Planned, scheduled_ns: int) -> None:
        exchange = await send(planned.request, cancel_after_events=planned.cancel_after_events,
                              cancel_after_ns=planned.cancel_after_ns)
        tally.ended(planned, exchange, scheduled_ns)

    tally = Tally(job, on_end=on_end)
    return await drive(job, requests, perform, tally)


async def drive(job: LoadJob, units: Iterable[U], perform: Callable[[U, int], Awaitable[None]],
                tally: Tally) -> LoadResult:
    """Runs units of any kind through the loop that the job asks for."""
    result = tally.result
    with no_garbage_collection(), watched_loop(result):
        start_ns, start_cpu, clock_offset_ns = now_ns(), time.process_time(), time.time_ns() - now_ns()
        try:
            if job.stages:
                await run_staged_loop(iter(units), perform, job=job, tally=tally)
            elif job.concurrency is not None:
                await run_closed_loop(iter(units), perform, concurrency=job.concurrency, tally=tally,
                                      ramp_up_ns=job.ramp_up_ns)
            else:
                await run_open_loop(iter(units), perform, job=job, tally=tally)
        except asyncio.CancelledError:
            result.was_cancelled = True
            result.stop_reason = "interrupted"
        result.clock_jump_us = abs(time.time_ns() - now_ns() - clock_offset_ns) // 1000
        result.cpu_share = (time.process_time() - start_cpu) / max((now_ns() - start_ns) / 1e9, 1e-9)
    return result


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pauses of the collector would show as latency; what it would free is freed between loads."""
    was_on = gc.isenabled()
    if was_on:
        gc.collect()
        gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
