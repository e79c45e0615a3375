"""Request throughput."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return len(sample.ok) / sample.wall_s


METRIC = Metric(
    name="request_throughput", title="Request throughput", unit="requests/s", order=90, kind="value",
    compute=_compute, formula="good requests / (t(last request ended) - t(first request sent))",
    definition="Answered requests over the cell's whole wall time.")
