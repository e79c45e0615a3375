"""Tokens per second of one user while the answer comes in."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [1e3 / r.time_per_token_ms for r in sample.streamed() if r.time_per_token_ms]


METRIC = Metric(
    name="decode_rate", title="Tokens per second of one user", unit="tokens/s", order=62, kind="samples",
    compute=_compute,
    formula="(output tokens - tokens of the first text) / (t(last text) - t(first text)), one per request",
    definition="How fast text appears to one user once it has begun: the inverse of the time per output token. The "
               "wait before it is not in it; the output rate of one request holds that too.")
