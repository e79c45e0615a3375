"""The step loop: whoever opens this file sees the product run.

Scheduler and runner meet here and only through `Batch` and `StepOutput`. The loop knows no tensors, no text and no
sockets; `Executor` runs it on a thread, `engine/process.py` in a process.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pelton.engine.messages import Stats
from pelton.errors import PeltonError
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Batch, Masks, Output, Request, Sequence, StepOutput


class Step(Protocol):
    """A launched step."""

    def result(self) -> StepOutput:
        """Waits for the step's tokens; raises what went wrong on the device."""


class Runner(Protocol):
    """One step on the device, in two launches that return at once."""

    def forward(self, batch: Batch) -> Step: ...

    def sample(self, step: Step, masks: Masks | None) -> None: ...

    def close(self) -> None: ...


class EngineLoop:
    """Runs requests step by step.

    Args:
        overlap: schedule and launch step n+1 while step n runs. Off, each step is finished before the next is planned.
        end_ids: end-of-sequence ids of requests that name none.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, *, overlap: bool = True, end_ids: tuple[int, ...] = ()):
        self.scheduler = scheduler
        self.runner = runner
        self.end_ids = end_ids
        self.num_steps = 0
        self._depth = 1 if overlap else 0
        self._in_flight: deque[tuple[Batch, Step]] = deque()
        self._arrivals = itertools.count()
        self._host_seconds: deque[float] = deque(maxlen=512)

    def step(self, tell: Callable[[list[Output]], None] | None = None) -> list[Output]:
        """Launches one step if there is something to run, and returns the news of those that have finished.

        Args:
            tell: is given news as soon as it is known, while this step's tokens are still to be drawn; what it is
                given is not returned.
        """
        began = time.thread_time()  # this thread's own time: waiting for the device does not count
        news: list[Output] = []
        batch = self.scheduler.schedule()
        if batch is None:  # nothing to run until the steps in flight have told their tokens
            self._collect(news, keep=0)
            return news
        step = self.runner.forward(batch)
        self._collect(news, keep=max(self._depth - 1, 0))
        if tell is not None and news:
            tell(news)
            news = []
        self.runner.sample(step, self.scheduler.masks(batch))
        self._in_flight.append((batch, step))
        self.num_steps += 1
        self._collect(news, keep=self._depth)
        self._host_seconds.append(time.thread_time() - began)
        return news

    def _collect(self, news: list[Output], *, keep: int) -> None:
        """Takes in the results of the oldest steps until `keep` are left in flight."""
        while len(self._in_flight) > keep:
            batch, step = self._in_flight.popleft()
            try:
                output = step.result()
            except Exception as error:  # the step's own requests end with the error; the others go on
                news += self.scheduler.fail(batch.step_id, f"{type(error).__name__}: {error}")
            else:
                news += self.scheduler.update(output)

    def has_work(self) -> bool:
        return bool(self._in_flight) or self.scheduler.has_work()

    def add(self, request: Request) -> None:
        """Queues a request, as n sequences: all of them or none.

        Raises:
            RequestError: it can never run here (too long, ids outside the vocabulary); the text says what would.
            CapacityError: the queue is full.
        """
        self.scheduler.validate(request)
        params = request.sampling_params
        end_ids = () if params.ignore_eos else (request.end_ids or self.end_ids)
        seed = params.seed if params.seed is not None else random.getrandbits(63)
        sequences = [Sequence(request, index=index, arrival=next(self._arrivals), seed=_as_int64(seed + index),
                              end_ids=end_ids) for index in range(params.n)]
        for sequence in sequences:
            self.scheduler.add(sequence)

    def cancel(self, request_id: str) -> list[Output]:
        """Ends all completions of a request now; returns their last news. Unknown ids are ignored."""
        return [Output(seq.request.request_id, seq.index, [], finish_reason="cancelled")
                for seq in self.scheduler.cancel(request_id)]

    def finish(self, request_id: str, index: int, num_tokens: int) -> None:
        """A stop string ended completion `index` after `num_tokens` output tokens. Unknown ids are ignored."""
        self.scheduler.finish(request_id, index, num_tokens)

    def drain(self) -> list[Output]:
        """Waits for the steps in flight, launching no more."""
        news: list[Output] = []
        self._collect(news, keep=0)
        return news

    def close(self) -> None:
        """Ends the runner and lets go of it, and so of weights and cache. Nothing can be run any more."""
        self._in_flight.clear()
        runner = self.runner
        del self.runner
        runner.close()

    def stats(self) -> Stats:
        """The engine's state now."""
        host_ms = 1e3 * statistics.median(self._host_seconds) if self._host_seconds else 0.0
        return Stats(num_steps=self.num_steps, step_host_ms=host_ms, **self.scheduler.stats())


def refusal(request: Request, error: Exception) -> list[Output]:
    """The news of a request that `add` refused: the end of each of its completions."""
    is_ours = isinstance(error, PeltonError)
    kind, text = (type(error).__name__, str(error)) if is_ours else (None, f"{type(error).__name__}: {error}")
    return [Output(request.request_id, index, [], finish_reason="error", error=text, error_kind=kind)
            for index in range(request.sampling_params.n)]


def _as_int64(number: int) -> int:
    """Seeds wrap around at 64 bits, as the counters of the random stream do."""
    return (number + 2**63) % 2**64 - 2**63
