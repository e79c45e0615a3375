"""Input throughput."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(r.prompt_tokens for r in sample.ok) / sample.wall_s


METRIC = Metric(
    name="input_throughput", title="Input throughput", unit="tokens/s", order=80, kind="value",
    compute=_compute, formula="sum of prompt tokens / (t(last request ended) - t(first request sent))",
    definition="Prompt tokens, as the server counts them, of all good requests over the cell's whole wall time.")
