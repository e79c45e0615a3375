"""Cached prompt tokens."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample, Withheld


def _compute(sample: Sample) -> list[float]:
    found = [float(r.cached_tokens) for r in sample.ok if r.cached_tokens is not None]
    if not found:
        raise Withheld("the server does not report cached tokens")
    return found


METRIC = Metric(
    name="cached_tokens", title="Cached prompt tokens", unit="tokens", order=140, kind="samples",
    compute=_compute, formula="usage.prompt_tokens_details.cached_tokens, one per request",
    definition="Prompt tokens the server took from a prefix cache instead of computing them. More than the chat "
               "template's own tokens means that time to first token is not the time of a whole prefill.")
