"""Requests in flight."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(r.latency_us for r in sample.requests) / 1e6 / sample.wall_s


METRIC = Metric(
    name="in_flight_requests", title="Requests in flight", unit="requests", order=100, kind="value",
    compute=_compute, formula="integral of the number in flight over time / wall time = sum of latencies / wall time",
    definition="Time-weighted mean of the requests between sending and last byte, as measured. It stays below the "
               "concurrency asked for when there are too few requests or the client is too slow.")
