"""How good the client was, and how hard it worked."""

from __future__ import annotations

import msgspec

from pelton.bench.results.record import Record


class ClientError(Record):
    """The client's own error at one number of streams, found with a server that stamps what it sends.

    Microseconds from the server's stamp to the client's, on one clock. The server's own work between its stamp and
    its write is included.
    """

    concurrency: int
    num_events: int
    ttft_p50_us: float
    ttft_p99_us: float
    event_p50_us: float
    """Of all events."""
    event_p99_us: float
    itl_p50_us: float
    """Of gaps between events: the client's gap minus the server's, its size without the sign."""
    itl_p99_us: float


class Stall(Record, kw_only=True):
    """A time in which a client process neither sent nor stamped anything: its event loop did not run."""

    trial: int
    worker: int
    """The client process, from 0."""
    start_us: int
    """When the loop should have run, since the run began."""
    end_us: int
    """When it did."""


class ClientLoad(Record, kw_only=True):
    """How hard the client itself worked; of several trials the worst, and the stalls of all."""

    num_workers: int
    """Client processes."""
    cpu_share: list[float]
    """CPU time over wall time, one per worker; 1 is a whole core."""
    loop_lag_p99_us: float | None = None
    """How late the event loop woke from its timers, P99 over all workers; none when it was not measured."""
    loop_lag_max_us: float | None = None
    """The longest of these lags; none when it was not measured."""
    stalls: list[Stall] = msgspec.field(default_factory=list)
    """Lags of 150 ms and more, by trial and worker."""
    clock_jump_us: int = 0
    """By how much the wall clock moved against the monotonic one, at most."""
    calibration: ClientError | None = None
    """The client's error at the nearest number of streams, measured before the run; none when it was not."""
