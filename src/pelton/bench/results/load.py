"""How the requests of a cell arrive."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.record import Record

LoadKind = Literal["closed", "closed_stages", "constant", "poisson", "gamma", "stages", "trace"]


class LoadStage(Record, kw_only=True):
    """A part of a piecewise load: of rates, or of requests in flight. They go in a straight line from beginning to end.
    """

    name: str
    duration_s: float | None = None
    """None: until num_requests were sent."""
    num_requests: int | None = None
    rate: float | None = None
    """Requests per second at its beginning."""
    end_rate: float | None = None
    """Requests per second at its end."""
    concurrency: int | None = None
    """Requests in flight at its beginning."""
    end_concurrency: int | None = None
    """Requests in flight at its end."""

    @property
    def most_in_flight(self) -> int:
        """Of a stage of requests in flight."""
        return max(self.concurrency, self.end_concurrency)


class LoadSpec(Record, kw_only=True):
    """How the requests of a cell arrive."""

    kind: LoadKind
    """closed: so many in flight, the next sent when one ends. closed_stages: the same, and how many changes. constant,
    poisson, gamma: arrivals at a rate whatever the server does. stages: Poisson arrivals whose rate changes. trace: the
    arrival times of a recorded log."""
    concurrency: int | None = None
    """Requests kept in flight (closed); the most of closed_stages."""
    rate: float | None = None
    """Requests per second (constant, poisson, gamma)."""
    ramp_up_s: float | None = None
    """Seconds over which the slots of a closed loop are filled, one after another; none: all at once."""
    burstiness: float | None = None
    """Shape of the gamma distribution of the gaps between arrivals: below 1 in bursts, 1 Poisson, above 1 evener."""
    stages: list[LoadStage] = msgspec.field(default_factory=list)
    trace: str | None = None
    """File the arrivals were read from."""
    speed_up: float = 1.0
    """By how much a trace is replayed faster than it was recorded."""
    num_requests: int | None = None
    """Measured requests of each trial; none: as many as the duration holds."""
    duration_s: float | None = None
    """Seconds in which measured requests are sent; none: until all are."""
    cancellation_rate: float = 0.0
    """Share of the requests that the client gives up in the middle of the answer, on purpose."""
    max_in_flight: int | None = None
    """Most requests in flight of an open loop; what is due beyond them waits, and the wait is in the latency from
    the scheduled time."""

    @property
    def is_closed(self) -> bool:
        """Whether the next request waits for an answer; the others come whatever the server does."""
        return self.kind in ("closed", "closed_stages")

    @property
    def changes_by_plan(self) -> bool:
        """Whether it has no one level that it could be steady at."""
        return self.kind in ("stages", "closed_stages", "trace")

    @property
    def stages_s(self) -> float | None:
        """Seconds of all stages; none where there are none, or one goes by count."""
        seconds = [stage.duration_s for stage in self.stages]
        return sum(seconds) if seconds and None not in seconds else None

    @property
    def key(self) -> str:
        """A short name for ids: c8 for a closed loop, r2.5 for Poisson arrivals."""
        if self.kind == "closed":
            return f"c{self.concurrency}"
        if self.kind == "closed_stages":
            return "cstages"
        if self.kind == "poisson":
            return f"r{self.rate:g}"
        if self.kind == "gamma":
            return f"r{self.rate:g}b{self.burstiness:g}"
        if self.kind == "constant":
            return f"k{self.rate:g}"
        return self.kind if self.speed_up == 1 else f"{self.kind}x{self.speed_up:g}"

    @property
    def label(self) -> str:
        """In words, for tables and plots."""
        if self.kind == "closed":
            return f"{self.concurrency} in flight"
        if self.kind == "closed_stages":
            return f"stages of up to {self.concurrency} in flight"
        if self.kind == "poisson":
            return f"{self.rate:g}/s"
        if self.kind == "gamma":
            return f"{self.rate:g}/s, burstiness {self.burstiness:g}"
        if self.kind == "constant":
            return f"{self.rate:g}/s even"
        if self.kind == "trace":
            return "trace" if self.speed_up == 1 else f"trace × {self.speed_up:g}"
        return "stages"

    @property
    def order(self) -> tuple[str, float, float]:
        """To sort loads by: kind, then requests in flight or per second."""
        level = self.concurrency or self.rate or self.speed_up
        return self.kind, float(level), self.burstiness or 0.0
