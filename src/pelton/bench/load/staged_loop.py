"""A closed loop whose number in flight changes by plan: slots open and close, and no answer is cut off."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import TypeVar

from pelton.bench.client import now_ns
from pelton.bench.load.board import LOOK_EVERY_S, Board
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.plan import LoadJob
from pelton.bench.load.tally import Tally, Verdict
from pelton.bench.load.unit import Unit
from pelton.bench.results import LoadStage

U = TypeVar("U", bound=Unit)


async def run_staged_loop(units: Iterator[U], perform: Callable[[U, int], Awaitable[None]], *, job: LoadJob,
                          tally: Tally) -> None:
    """Keeps as many units in flight as the stages want, until the last one ends, no unit is left or no more may start.

    The first measured unit, of whichever process, starts the first stage's time; warm-up units are sent at its
    beginning's level. A slot that closes lets its unit end and starts no other.
    """
    with closing(Board(job.stages, job.board)) as board:
        await _run_slots(units, perform, _Gate(job, board), num_slots=job.concurrency, tally=tally)


async def _run_slots(units: Iterator[U], perform: Callable[[U, int], Awaitable[None]], gate: _Gate, *, num_slots: int,
                     tally: Tally) -> None:
    put_back: deque[U] = deque()

    async def keep_busy(slot: int) -> None:
        while await gate.opens(slot):
            unit = put_back.popleft() if put_back else next(units, None)
            if unit is not None and not unit.is_warmup:
                unit.stage = gate.pass_one()
                if unit.stage is None:
                    put_back.append(unit)
                    continue
            verdict = Verdict.STOP if unit is None else tally.judge(is_warmup=unit.is_warmup)
            if verdict is Verdict.STOP:
                gate.shut()
            elif verdict is Verdict.START:
                await perform(unit, now_ns())

    async with asyncio.TaskGroup() as tasks:
        conductor = tasks.create_task(gate.follow_the_stages())
        async with asyncio.TaskGroup() as slots:
            for slot in range(num_slots):
                slots.create_task(keep_busy(slot))
        conductor.cancel()


class _Gate:
    """Says which slots may start a unit now. Of several processes each has every nth slot."""

    def __init__(self, job: LoadJob, board: Board) -> None:
        self._stages = job.stages
        self._first_slot, self._slot_step = job.first_slot, job.slot_step
        self._board = board
        self._is_shut = False
        self._changed = asyncio.Event()
        self._enter(0)

    async def opens(self, slot: int) -> bool:
        """Waits until the slot may start a unit; False when it never may again."""
        number = self._first_slot + slot * self._slot_step
        while not self._is_shut and (number >= self._level or self._is_spent):
            await self._changed.wait()
        return not self._is_shut

    def pass_one(self) -> str | None:
        """Counts a measured unit and names its stage; none when the stage, by its count, takes no more."""
        self._board.begin()
        stage = self._stages[self._stage]
        if stage.num_requests is not None:
            has_place = self._board.claim(self._stage)
            self._is_spent = bool(self._board.ended_ns(self._stage))
        self._tell()
        return stage.name if stage.num_requests is None or has_place else None

    def shut(self) -> None:
        self._is_shut = True
        self._tell()

    async def follow_the_stages(self) -> None:
        """From the first measured unit on; what ends a stage by count is its last unit's start."""
        at_ns = await self._moment(lambda: self._board.began_ns)
        for number, stage in enumerate(self._stages):
            if number:
                self._enter(number)
            if stage.num_requests is not None:
                at_ns = await self._moment(lambda: self._board.ended_ns(self._stage))
                continue
            for after_s, level in changes(stage):
                await sleep_until(at_ns + round(after_s * 1e9))
                self._level = level
                self._tell()
            at_ns += round(stage.duration_s * 1e9)
            await sleep_until(at_ns)
        self.shut()

    async def _moment(self, read: Callable[[], int]) -> int:
        """Waits until something has happened, here or in another process, and says when."""
        while not (at_ns := read()):
            if self._board.is_shared:
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                await self._changed.wait()
        return at_ns

    def _enter(self, number: int) -> None:
        self._stage, self._level, self._is_spent = number, self._stages[number].concurrency, False
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
