"""Shares a load among client processes and joins what they bring back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pelton.bench.client import Client, now_ns
from pelton.bench.conversation import VoiceSpec
from pelton.bench.load.board import write_board
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.sessions import Script
from pelton.bench.load.tally import LoadResult
from pelton.bench.workers.messages import Done, Go, Order, Prepare, Pulse, Ready, Report, Setup, Stop, pack, read_report
from pelton.errors import PeltonError

LEAD_NS = 50_000_000  # from the order to start to time 0 of an open loop
MIN_FAILURES_TO_STOP = 4
OnPulse = Callable[[int, Pulse], None]


class WorkerPool:
    """Client processes that talk to one server, with the same clock as this one."""

    def __init__(self, client: Client) -> None:
        self._setup = Setup(client.address.url, dict(client.headers), client.timeout_s)
        self._processes: list[asyncio.subprocess.Process] = []

    async def grow(self, count: int) -> None:
        """Starts processes until there are so many."""
        while len(self._processes) < count:
            # Not in the terminal's process group: Ctrl-C is for the benchmark to pass on.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pelton.bench.workers.worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True)
            self._processes.append(process)
            await _order(process, self._setup)

    async def run(self, job: LoadJob, units: Sequence[Planned] | Sequence[Script], *, num_workers: int,
                  voice: VoiceSpec | None = None, on_pulse: OnPulse | None = None) -> list[LoadResult]:
        """Sends requests, or holds conversations where there is a voice, from so many processes; one result each, in
        their order. A cancelled load returns what had ended. `on_pulse` is told now and then what process saw what.

        Raises:
            PeltonError: a process died.
        """
        await self.grow(num_workers)
        with tempfile.TemporaryDirectory() as folder:
            if job.stages:
                board = Path(folder) / "board"
                write_board(job.stages, board)
                job = msgspec.structs.replace(job, board=str(board))
            return await self._run(job, units, num_workers=num_workers, voice=voice, on_pulse=on_pulse)

    async def _run(self, job: LoadJob, units: Sequence[Planned] | Sequence[Script], *, num_workers: int,
                   voice: VoiceSpec | None, on_pulse: OnPulse | None) -> list[LoadResult]:
        processes = self._processes[:num_workers]
        for process, part in zip(processes, share_out(job, units, num_workers, voice)):
            await _order(process, part)
        await asyncio.gather(*(_report(process, Ready) for process in processes))
        start_ns = now_ns() + LEAD_NS
        for process in processes:
            await _order(process, Go(start_ns))
        done = asyncio.gather(*(_report(process, Done, on_pulse and functools.partial(on_pulse, number))
                                for number, process in enumerate(processes)))
        try:
            reports = await asyncio.shield(done)
        except asyncio.CancelledError:
            for process in processes:
                await _order(process, Stop())
            reports = await done
        for number, report in enumerate(reports):
            for _, exchange in report.result.sent:
                exchange.worker = number
        return [report.result for report in reports]

    def close(self) -> None:
        """Ends all processes."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        self._processes.clear()


def share_out(job: LoadJob, units: Sequence[Planned] | Sequence[Script], num_workers: int,
              voice: VoiceSpec | None = None) -> list[Prepare]:
    """Every process's part: requests or conversations in turn, slots and places as evenly as they divide."""
    parts = []
    for number in range(num_workers):
        concurrency = None if job.concurrency is None else _part(job.concurrency, number, num_workers)
        most = job.max_failures_in_a_row and max(MIN_FAILURES_TO_STOP, concurrency or 1)
        part = msgspec.structs.replace(job, concurrency=concurrency, first_slot=number, slot_step=num_workers,
                                       max_failures_in_a_row=most,
                                       max_in_flight=max(_part(job.max_in_flight, number, num_workers), 1))
        mine = list(units[number::num_workers])
        requests, scripts = (mine, []) if voice is None else ([], mine)
        parts.append(Prepare(part, requests, min(concurrency or 1, len(mine)), scripts, voice))
    return parts


def join(results: Sequence[LoadResult]) -> LoadResult:
    """One load's result from those of its parts."""
    return LoadResult(
        sent=[pair for result in results for pair in result.sent],
        stop_reason=next((r.stop_reason for r in results if r.stop_reason is not None), None),
        was_cancelled=any(r.was_cancelled for r in results),
        is_server_failing=any(r.is_server_failing for r in results), num_held=sum(r.num_held for r in results))


def _part(count: int, number: int, num_parts: int) -> int:
    return count // num_parts + (number < count % num_parts)


async def _order(process: asyncio.subprocess.Process, order: Order) -> None:
    try:
        process.stdin.write(pack(order))
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        raise PeltonError("a client process of the benchmark died; see its error above") from None


async def _report(process: asyncio.subprocess.Process, kind: type[Report],
                  on_pulse: Callable[[Pulse], None] | None = None) -> Report:
    try:
        while isinstance(report := await read_report(process.stdout), Pulse):
            if on_pulse is not None:
                on_pulse(report)
    except asyncio.IncompleteReadError:
        raise PeltonError("a client process of the benchmark died; see its error above") from None
    assert isinstance(report, kind), report
    return report
