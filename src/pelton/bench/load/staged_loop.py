"""A closed loop whose number in flight changes by plan: slots open and close, and no answer is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from pelton.bench.client import now_ns
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.plan import LoadJob
from pelton.bench.load.tally import Tally, Verdict
from pelton.bench.load.unit import Unit
from pelton.bench.results import LoadStage

U = TypeVar("U", bound=Unit)


async def run_staged_loop(units: Iterator[U], perform: Callable[[U, int], Awaitable[None]], *, job: LoadJob,
                          tally: Tally) -> None:
    """Keeps as many units in flight as the stages want, until the last one ends, no unit is left or no more may start.

    The first measured unit starts the first stage's time; warm-up units are sent at its beginning's level. A slot that
    closes lets its unit end and starts no other.
    """
    gate = _Gate(job)

    async def keep_busy(slot: int) -> None:
        while await gate.opens(slot):
            unit = next(units, None)
            verdict = Verdict.STOP if unit is None else tally.judge(is_warmup=unit.is_warmup)
            if verdict is Verdict.STOP:
                gate.shut()
            elif verdict is Verdict.START:
                if not unit.is_warmup:
                    unit.stage = gate.pass_one()
                await perform(unit, now_ns())

    async with asyncio.TaskGroup() as tasks:
        conductor = tasks.create_task(gate.follow_the_stages())
        async with asyncio.TaskGroup() as slots:
            for slot in range(job.concurrency):
                slots.create_task(keep_busy(slot))
        conductor.cancel()


class _Gate:
    """Says which slots may start a unit now. Of several processes each has every nth slot."""

    def __init__(self, job: LoadJob) -> None:
        self._stages = job.stages
        self._first_slot, self._slot_step = job.first_slot, job.slot_step
        self._has_begun = self._is_shut = False
        self._changed = asyncio.Event()
        self._enter(job.stages[0])

    async def opens(self, slot: int) -> bool:
        """Waits until the slot may start a unit; False when it never may again."""
        number = self._first_slot + slot * self._slot_step
        while not self._is_shut and (number >= self._level or self._num_left == 0):
            await self._changed.wait()
        return not self._is_shut

    def pass_one(self) -> str:
        """Counts a measured unit and names its stage."""
        self._has_begun = True
        if self._num_left is not None:
            self._num_left -= 1
        self._tell()
        return self._stage.name

    def shut(self) -> None:
        self._is_shut = True
        self._tell()

    async def follow_the_stages(self) -> None:
        """From the first measured unit on; what ends a stage by count is its last unit's start."""
        while not self._has_begun:
            await self._changed.wait()
        at_ns = now_ns()
        for stage in self._stages:
            if stage is not self._stage:
                self._enter(stage)
            if stage.num_requests is not None:
                while self._num_left:
                    await self._changed.wait()
                at_ns = now_ns()
                continue
            for after_s, level in changes(stage):
                await sleep_until(at_ns + round(after_s * 1e9))
                self._level = level
                self._tell()
            at_ns += round(stage.duration_s * 1e9)
            await sleep_until(at_ns)
        self.shut()

    def _enter(self, stage: LoadStage) -> None:
        self._stage, self._level, self._num_left = stage, stage.concurrency, stage.num_requests
        self._tell()

    def _tell(self) -> None:
        """Wakes whoever waits for a change, and nobody who comes later."""
        self._changed.set()
        self._changed = asyncio.Event()


def changes(stage: LoadStage) -> Iterator[tuple[float, int]]:
    """(seconds into the stage, requests in flight from then on): the whole number nearest to the straight line."""
    step = 1 if stage.end_concurrency > stage.concurrency else -1
    count = abs(stage.end_concurrency - stage.concurrency)
    return ((stage.duration_s * (k + 0.5) / count, stage.concurrency + step * (k + 1)) for k in range(count))
