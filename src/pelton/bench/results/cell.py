"""One measured combination of load and request shape."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.client import ClientLoad
from pelton.bench.results.figure import Distribution, MetricResult
from pelton.bench.results.load import LoadSpec
from pelton.bench.results.record import Record

Status = Literal["complete", "partial"]


class Window(Record, kw_only=True):
    """The steady part of one trial: the load was full, and warm-up and run-out are outside."""

    trial: int
    start_us: int | None = None
    end_us: int | None = None
    withheld: str | None = None
    """Why there is none."""


class _HasMetrics:
    """Asks for metrics by name. No record itself, so that each says where its metrics stand among its fields."""

    __slots__ = ()
    metrics: dict[str, MetricResult]

    def distribution(self, metric: str) -> Distribution | None:
        found = self.metrics.get(metric)
        return None if found is None else found.distribution

    def value(self, metric: str) -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found.value


class StageResult(_HasMetrics, Record, kw_only=True):
    """One stage of a piecewise load, over all trials.

    Latencies and sizes are those of the requests that began in it. Rates and requests in flight are those of the
    stage's time, whichever stage a request began in.
    """

    name: str
    windows: list[Window]
    """Its time in each trial: from its first request's time to the first of the next stage."""
    num_done: int
    """Measured requests that began in it and ended, well, badly or cancelled."""
    errors: dict[str, int]
    """Failed ones by kind."""
    peak_in_flight: int
    """At any time of the stage."""
    metrics: dict[str, MetricResult]


class CellResult(_HasMetrics, Record, kw_only=True):
    """One measured combination of load and request shape."""

    id: str
    load: LoadSpec
    requested_prompt_tokens: int
    """Of prompts whose sizes vary the mean; each request's own is in its record."""
    requested_output_tokens: int
    """The mean too."""
    has_fixed_sizes: bool = True
    """Whether all requests of the cell ask for the same sizes."""
    is_stream: bool
    num_trials: int = 1
    """Repeats measured so far; their requests are pooled, and no time between them counts."""
    num_done: int
    """Measured requests that ended, well, badly or cancelled."""
    start_us: int
    """First measured request sent, since the run began."""
    end_us: int
    """Last measured request ended."""
    windows: list[Window] = msgspec.field(default_factory=list)
    """The steady-state window of each trial."""
    stages: list[StageResult] = msgspec.field(default_factory=list)
    """Of a piecewise load, those that sent any request."""
    peak_in_flight: int
    client: ClientLoad | None = None
    metrics: dict[str, MetricResult]
    errors: dict[str, int]
    """Failed measured requests by kind."""
    num_cancelled: int = 0
    """Measured requests that the client gave up on purpose."""
    num_held: int = 0
    """Requests of an open loop, warm-up included, that waited because max_in_flight were in flight."""
    status: Status = "complete"
    stop_reason: str | None = None
    """Why the cell has fewer requests than asked for."""

    @property
    def concurrency(self) -> int | None:
        """Requests asked to be in flight; none for loads that are not closed loops."""
        return self.load.concurrency if self.load.kind == "closed" else None

    @property
    def num_requests(self) -> int | None:
        """Measured requests asked for, over all trials; none where the load goes by time."""
        return None if self.load.num_requests is None else self.load.num_requests * self.num_trials
