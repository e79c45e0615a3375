"""How the requests of a cell arrive."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.record import Record

LoadKind = Literal["closed", "constant", "poisson", "gamma", "stages", "trace"]


class LoadStage(Record):
    """A part of a piecewise load. The rate goes in a straight line from `rate` to `end_rate`."""

    name: str
    duration_s: float
    rate: float
    """Requests per second at its beginning."""
    end_rate: float
    """Requests per second at its end."""


class LoadSpec(Record, kw_only=True):
    """How the requests of a cell arrive."""

    kind: LoadKind
    """closed: so many in flight, the next sent when one ends. constant, poisson, gamma: arrivals at a rate whatever
    the server does. stages: Poisson arrivals whose rate changes. trace: the arrival times of a recorded log."""
    concurrency: int | None = None
    """Requests kept in flight (closed)."""
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
    def key(self) -> str:
        """A short name for ids: c8 for a closed loop, r2.5 for Poisson arrivals."""
        if self.kind == "closed":
            return f"c{self.concurrency}"
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
