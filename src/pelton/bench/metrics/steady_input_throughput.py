"""Input throughput while the load was full."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric
from pelton.bench.metrics.steady_tokens import WINDOW, input_tokens_per_s

METRIC = Metric(
    name="steady_input_throughput", title="Input throughput, steady", unit="tokens/s", order=82, kind="value",
    compute=input_tokens_per_s, formula="prompt tokens whose answer began inside the window / its length",
    definition="Prompt tokens per second without warm-up and run-out. " + WINDOW)
