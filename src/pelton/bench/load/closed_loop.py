"""Closed loop: a fixed number of requests kept in flight, the next sent the moment one ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pelton.bench.client import Exchange, now_ns

Send = Callable[[bytes], Awaitable[Exchange]]


@dataclass(slots=True)
class LoadResult:
    """What a load sent and got back, in the order of sending."""

    exchanges: dict[int, Exchange] = field(default_factory=dict)
    """Position of the request -> its exchange; only requests that ended."""
    stop_reason: str | None = None
    """Why not all requests were sent, or did not end."""
    was_cancelled: bool = False
    is_server_failing: bool = False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pauses of the collector would show as latency; what it would free is freed between loads."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def run_closed_loop(requests: Sequence[bytes], send: Send, *, concurrency: int,
                          deadline_ns: int | None = None, max_failures_in_a_row: int | None = None,
                          on_end: Callable[[Exchange], None] | None = None) -> LoadResult:
    """Keeps `concurrency` requests in flight until all were sent and ended.

    Args:
        deadline_ns: on the benchmark's clock; afterwards no request is started, but at least one per slot is.
        max_failures_in_a_row: so many failed requests with no good one between them end the load.
        on_end: told of every exchange as it ends.

    A cancelled load returns what had ended; requests in flight are lost and not counted.
    """
    result = LoadResult()
    positions = iter(range(len(requests)))
    num_failures_in_a_row = 0

    def may_start(position: int) -> bool:
        if result.is_server_failing:
            return False
        if deadline_ns is not None and position >= concurrency and now_ns() >= deadline_ns:
            result.stop_reason = "the time budget was spent"
            return False
        return True

    async def keep_busy() -> None:
        nonlocal num_failures_in_a_row
        for position in positions:
            if not may_start(position):
                return
            scheduled_ns = now_ns()
            exchange = await send(requests[position])
            exchange.scheduled_ns = scheduled_ns
            result.exchanges[position] = exchange
            failed = exchange.failure is not None or exchange.response.status != 200
            num_failures_in_a_row = num_failures_in_a_row + 1 if failed else 0
            if max_failures_in_a_row is not None and num_failures_in_a_row >= max_failures_in_a_row:
                result.is_server_failing = True
                result.stop_reason = f"{num_failures_in_a_row} requests in a row failed"
            if on_end is not None:
                on_end(exchange)

    with _no_garbage_collection():
        slots = [asyncio.create_task(keep_busy()) for _ in range(min(concurrency, len(requests)))]
        try:
            await asyncio.gather(*slots)
        except asyncio.CancelledError:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            result.was_cancelled = True
            result.stop_reason = "interrupted"
    return result
