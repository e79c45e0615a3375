"""Time per output token."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [r.time_per_token_ms for r in sample.streamed() if r.time_per_token_ms is not None]


METRIC = Metric(
    name="tpot", title="Time per output token", unit="ms", order=30, kind="samples", compute=_compute,
    formula="(t(last text) - t(first text)) / (output tokens - tokens of the first text), one per request",
    definition="Mean time of a request's tokens after its first text, which holds one token, or more where chunks hold "
               "several or arrive together: then its share of the answer's characters. An answer that came all at once "
               "has none.")
