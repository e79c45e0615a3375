"""Prompt tokens of a request."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [float(r.prompt_tokens) for r in sample.ok]


METRIC = Metric(
    name="prompt_tokens", title="Prompt tokens", unit="tokens", order=120, kind="samples", compute=_compute,
    formula="usage.prompt_tokens, one per request",
    definition="True size of each prompt, chat template included, as the server counted it; the client's own count "
               "where the server reports no usage.")
