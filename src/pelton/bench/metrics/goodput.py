"""Goodput: requests per second that met every latency target."""

from __future__ import annotations

from pelton.bench.metrics.attainment import meets_targets
from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(meets_targets(sample)) / sample.wall_s


METRIC = Metric(
    name="goodput", title="Goodput", unit="requests/s", order=92, kind="value", compute=_compute,
    formula="requests that met every target / (t(last request ended) - t(first request sent))",
    definition="Requests per second whose latencies were all within the targets given with --goodput. Failed requests "
               "and answers without text meet none (Zhong et al. 2024, DistServe).")
