"""One thread that runs jobs in the order they were queued: the CPU's stand-in for a device stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch


class Worker:
    """Runs jobs under inference mode. A job deals with its own errors; one that gets out is a defect and is raised
    in the thread, which ends.

    Args:
        num_threads: of torch's operators; none leaves torch's own choice.
    """

    def __init__(self, num_threads: int | None = None):
        self._num_threads = num_threads
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pelton-runner", daemon=True)
        self._is_closed = False
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queues a job; returns at once."""
        if self._is_closed:
            raise RuntimeError("the runner is closed")
        self._jobs.put(job)

    def close(self) -> None:
        """Runs what is queued, then ends the thread. More than once does no harm."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        if self._num_threads is not None:  # torch keeps this per thread that starts parallel work
            torch.set_num_threads(self._num_threads)
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                job()
