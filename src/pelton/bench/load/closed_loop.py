"""Closed loop: a fixed number kept in flight, the next sent the moment one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from pelton.bench.client import now_ns
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.tally import Tally, Verdict
from pelton.bench.load.unit import Unit

U = TypeVar("U", bound=Unit)


async def run_closed_loop(units: Iterator[U], perform: Callable[[U, int], Awaitable[None]], *, concurrency: int,
                          tally: Tally, ramp_up_ns: int = 0) -> None:
    """Keeps `concurrency` units in flight until all have ended or no more may start.

    Warm-up units are handed over without draining: measured ones start in the slots that warm-up ones leave. The
    slots are filled at even distances over `ramp_up_ns`.
    """
    start_ns = now_ns()

    async def keep_busy(slot: int) -> None:
        await sleep_until(start_ns + ramp_up_ns * slot // concurrency)
        for unit in units:
            verdict = tally.judge(is_warmup=unit.is_warmup)
            if verdict is Verdict.STOP:
                return
            if verdict is Verdict.START:
                await perform(unit, now_ns())

    async with asyncio.TaskGroup() as slots:
        for slot in range(concurrency):
            slots.create_task(keep_busy(slot))
