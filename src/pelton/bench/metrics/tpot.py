"""Time per output token."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.last_content_us - r.first_text_us) / 1e3 / (r.output_tokens - 1)
            for r in sample.streamed() if r.output_tokens > 1]


METRIC = Metric(
    name="tpot", title="Time per output token", unit="ms", order=30, kind="samples", compute=_compute,
    formula="(t(last text) - t(first text)) / (output tokens - 1), one per request",
    definition="Mean time of a request's tokens after its first. Requests with a single output token have none.")
