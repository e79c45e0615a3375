"""Failed requests."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return float(sum(r.error is not None for r in sample.requests))


METRIC = Metric(
    name="errors", title="Failed requests", unit="requests", order=150, kind="value", compute=_compute,
    formula="number of measured requests without a full answer",
    definition="Refused, timed out, dropped or malformed answers. They are left out of every latency and token count; "
               "a cell lists them by kind.")
