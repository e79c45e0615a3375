"""Output tokens of a request."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [float(r.output_tokens) for r in sample.ok]


METRIC = Metric(
    name="output_tokens", title="Output tokens", unit="tokens", order=130, kind="samples", compute=_compute,
    formula="usage.completion_tokens, one per request",
    definition="Tokens generated for each request as the server counted them; the client's count of the received "
               "text where the server reports no usage.")
