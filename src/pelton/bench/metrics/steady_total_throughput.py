"""Total throughput while the load was full."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample
from pelton.bench.metrics.steady_tokens import WINDOW, input_tokens_per_s, output_tokens_per_s


def _compute(sample: Sample) -> float:
    return input_tokens_per_s(sample) + output_tokens_per_s(sample)


METRIC = Metric(
    name="steady_total_throughput", title="Total throughput, steady", unit="tokens/s", order=87, kind="value",
    compute=_compute, formula="input throughput, steady + output throughput, steady",
    definition="Prompt and generated tokens per second without warm-up and run-out. " + WINDOW)
