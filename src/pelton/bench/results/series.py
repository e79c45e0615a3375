"""What is watched beside the load."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.record import Record


class Series(Record, kw_only=True):
    """Something watched beside the load, on the clock of the requests."""

    source: Literal["gpu", "server", "engine"]
    """gpu: NVML of the machine the benchmark runs on; server: the server's own Prometheus metrics; engine: what an
    engine in this process tells of itself."""
    name: str
    """power, utilization, memory_used (gpu); the metric's own name (server); step_host, the median Python time of a
    step (engine)."""
    unit: str
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    at_us: list[int]
    """Since the run began."""
    values: list[float]
