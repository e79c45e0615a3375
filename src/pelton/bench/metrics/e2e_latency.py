"""End-to-end latency."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.end_us - sample.start_of(r)) / 1e3 for r in sample.ok]


METRIC = Metric(
    name="e2e_latency", title="End-to-end latency", unit="ms", order=50, kind="samples", compute=_compute,
    formula="t(last byte) - t(sent)",
    definition="From just before the request is handed to an open connection to the last byte of the answer.")
METRICS = (METRIC, METRIC.from_schedule())
