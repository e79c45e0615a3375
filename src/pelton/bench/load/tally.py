"""What became of a load: the requests that ended, and why it stopped."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from pelton.bench.client import Exchange, now_ns
from pelton.bench.load.plan import LoadJob, Planned

OnEnd = Callable[[Planned, Exchange], None]
BUDGET_SPENT = "the time budget was spent"


@dataclass(slots=True)
class LoadResult:
    """What a load sent and got back."""

    sent: list[tuple[Planned, Exchange]] = field(default_factory=list)
    """In the order in which they ended; only requests that did."""
    stop_reason: str | None = None
    """Why not all requests were sent, or did not end."""
    was_cancelled: bool = False
    is_server_failing: bool = False
    num_held: int = 0
    """Requests of an open loop that were due while max_in_flight were in flight."""
    cpu_share: float = 0.0
    """CPU time of the process over wall time, while the load ran."""
    clock_jump_us: int = 0
    """By how much the wall clock moved against the monotonic one."""
    loop_lags_us: list[float] = field(default_factory=list)
    """How late the event loop woke from timers."""
    stalls_ns: list[tuple[int, int]] = field(default_factory=list)
    """From when to when it stood still, which are the longest of those lags."""


class Verdict(enum.Enum):
    """What is to become of the next request."""

    START = enum.auto()
    SKIP = enum.auto()
    STOP = enum.auto()


class Tally:
    """Counts a load's requests and says whether another one may start."""

    def __init__(self, job: LoadJob, *, on_end: OnEnd | None = None) -> None:
        self.result = LoadResult()
        self._job = job
        self._on_end = on_end
        self._num_measured = 0
        self._num_failures_in_a_row = 0
        self._measured_until_ns: int | None = None

    def judge(self, *, is_warmup: bool) -> Verdict:
        """Whether another request may be sent now; the first measured one starts the measured time."""
        job, now = self._job, now_ns()
        if self.result.is_server_failing:
            return Verdict.STOP
        is_late = job.deadline_ns is not None and now >= job.deadline_ns
        if is_warmup:
            return Verdict.SKIP if is_late else Verdict.START
        if is_late and self._num_measured >= (job.concurrency or 1):
            self.result.stop_reason = BUDGET_SPENT
            return Verdict.STOP
        if job.duration_ns is not None and job.concurrency is not None:
            if self._measured_until_ns is None:
                self._measured_until_ns = now + job.duration_ns
            elif now >= self._measured_until_ns:
                return Verdict.STOP
        self._num_measured += 1
        return Verdict.START

    def gave_up(self) -> None:
        """An open loop cannot send what is due."""
        self.result.stop_reason = (f"overload: requests waited more than {self._job.give_up_ns / 1e9:g} s for a place "
                                   f"among {self._job.max_in_flight} in flight")

    def ended(self, planned: Planned, exchange: Exchange, scheduled_ns: int) -> None:
        exchange.scheduled_ns = scheduled_ns
        result, most = self.result, self._job.max_failures_in_a_row
        result.sent.append((planned, exchange))
        failed = exchange.failure is not None or exchange.response.status not in (0, 200)
        self._num_failures_in_a_row = self._num_failures_in_a_row + 1 if failed else 0
        if most is not None and self._num_failures_in_a_row >= most:
            result.is_server_failing = True
            result.stop_reason = f"{self._num_failures_in_a_row} requests in a row failed"
        if self._on_end is not None:
            self._on_end(planned, exchange)
