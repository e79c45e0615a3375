"""Total throughput."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(r.prompt_tokens + r.output_tokens for r in sample.ok) / sample.wall_s


METRIC = Metric(
    name="total_throughput", title="Total throughput", unit="tokens/s", order=86, kind="value", compute=_compute,
    formula="sum of prompt and output tokens / (t(last request ended) - t(first request sent))",
    definition="Prompt and generated tokens of all good requests over the cell's whole wall time. Prompt tokens that "
               "came out of a cache are in it.")
