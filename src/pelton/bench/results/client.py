"""How good the client was, and how hard it worked."""

from __future__ import annotations

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


class ClientLoad(Record, kw_only=True):
    """How hard the client itself worked; of several trials the worst."""

    num_workers: int
    """Client processes."""
    cpu_share: list[float]
    """CPU time over wall time, one per worker; 1 is a whole core."""
    loop_lag_p99_us: float | None = None
    """How late the event loop woke from its timers, P99 over all workers; none when it was not measured."""
    clock_jump_us: int = 0
    """By how much the wall clock moved against the monotonic one, at most."""
    calibration: ClientError | None = None
    """The client's error at the nearest number of streams, measured before the run; none when it was not."""
