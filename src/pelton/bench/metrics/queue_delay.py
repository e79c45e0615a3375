"""Delay before sending."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.sent_us - r.scheduled_us) / 1e3 for r in sample.requests]


METRIC = Metric(
    name="queue_delay", title="Delay before sending", unit="ms", order=16, kind="samples", compute=_compute,
    formula="t(sent) - t(scheduled)",
    definition="How long a request waited in the client after the load's plan wanted it sent: for a free place below "
               "the limit of requests in flight, for a connection, or for the client itself. Latencies from sending "
               "leave it out, those from schedule hold it.")
