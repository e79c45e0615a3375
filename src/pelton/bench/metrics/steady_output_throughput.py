"""Output throughput while the load was full."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric
from pelton.bench.metrics.steady_tokens import WINDOW, output_tokens_per_s

METRIC = Metric(
    name="steady_output_throughput", title="Output throughput, steady", unit="tokens/s", order=72, kind="value",
    compute=output_tokens_per_s, formula="tokens that arrived inside the window / its length",
    definition="Generated tokens per second without warm-up and run-out. " + WINDOW)
