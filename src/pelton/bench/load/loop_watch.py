"""How late the event loop of a client process runs, and when it stood still."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pelton.bench.client import now_ns
from pelton.bench.load.tally import LoadResult

INTERVAL_NS = 20_000_000
MIN_STALL_NS = 150_000_000
"""A lag so long is a stall. On two busy cores other processes keep the loop waiting for up to about 100 ms."""


class LoopWatch:
    """Records how late the event loop wakes a task, which is how late it may read a socket."""

    def __init__(self, result: LoadResult) -> None:
        self._result = result
        self._due_ns = now_ns() + INTERVAL_NS

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_NS / 1e9)
            self._note(now_ns())
            self._due_ns = now_ns() + INTERVAL_NS

    def close(self) -> None:
        """Records a lag that the loop has not come round to."""
        now = now_ns()
        if now > self._due_ns:
            self._note(now)

    def _note(self, now: int) -> None:
        late_ns = max(now - self._due_ns, 0)
        self._result.loop_lags_us.append(late_ns / 1e3)
        if late_ns >= MIN_STALL_NS:
            self._result.stalls_ns.append((self._due_ns, now))


@contextmanager
def watched_loop(result: LoadResult) -> Iterator[None]:
    """Watches the running event loop. A load that ends as the loop wakes from a stall has that stall too."""
    watch = LoopWatch(result)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        watch.close()
