"""Open loop: requests are sent when they are due, however many are in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from pelton.bench.client import now_ns
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.plan import LoadJob
from pelton.bench.load.tally import Tally, Verdict
from pelton.bench.load.unit import Unit

U = TypeVar("U", bound=Unit)


async def run_open_loop(units: Iterator[U], perform: Callable[[U, int], Awaitable[None]], *, job: LoadJob,
                        tally: Tally) -> None:
    """Starts every unit at its time and waits until all have ended.

    Beyond `job.max_in_flight` units wait in order, and the time they wait stays in their latency from the scheduled
    time. One that waits longer than `job.give_up_ns` ends the sending.
    """
    places = asyncio.Semaphore(job.max_in_flight)
    full_until_ns = 0
    async with asyncio.TaskGroup() as running:
        for unit in units:
            due_ns = job.start_ns + unit.due_ns
            await sleep_until(due_ns)
            verdict = tally.judge(is_warmup=unit.is_warmup)
            if verdict is Verdict.STOP:
                return
            if verdict is Verdict.SKIP:
                continue
            is_full = places.locked()
            await places.acquire()
            if is_full:
                full_until_ns = now_ns()
            if due_ns < full_until_ns:
                tally.result.num_held += 1
                if full_until_ns - due_ns > job.give_up_ns:
                    tally.gave_up()
                    return
            task = running.create_task(perform(unit, due_ns))
            task.add_done_callback(lambda _: places.release())
