"""Output rate of one request."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [r.output_tokens * 1e6 / max(r.latency_us, 1) for r in sample.ok]


METRIC = Metric(
    name="request_output_rate", title="Output rate of one request", unit="tokens/s", order=60, kind="samples",
    compute=_compute, formula="output tokens / end-to-end latency, one per request",
    definition="What one user sees, prefill and queueing included.")
