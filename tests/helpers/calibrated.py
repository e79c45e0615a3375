"""The calibration server on a thread of the test's own process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pelton.bench.calibration import Behaviour, CalibrationServer


@contextmanager
def serve_in_thread(behaviour: Behaviour | None = None) -> Iterator[CalibrationServer]:
    """A calibration server on a free port of the loopback, on a thread of its own, until the block ends."""
    server = CalibrationServer(behaviour)
    started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = concurrent.futures.Future()

    async def work() -> None:
        try:
            async with server:
                ended = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), ended))
                await ended.wait()
        except OSError as error:
            started.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="calibration-server", daemon=True)
    thread.start()
    loop, ended = started.result()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
