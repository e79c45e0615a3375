"""Waiting for a time on the benchmark's clock."""

from __future__ import annotations

import asyncio

from pelton.bench.client import now_ns


async def sleep_until(due_ns: int) -> None:
    """Returns at or just after a time on the benchmark's clock; event loops' timers are a millisecond coarse."""
    while (left_ns := due_ns - now_ns()) > 0:
        await asyncio.sleep(left_ns / 1e9)
