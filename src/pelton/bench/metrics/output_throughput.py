"""Output throughput."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(r.output_tokens for r in sample.ok) / sample.wall_s


METRIC = Metric(
    name="output_throughput", title="Output throughput", unit="tokens/s", order=70, kind="value",
    compute=_compute, formula="sum of output tokens / (t(last request ended) - t(first request sent))",
    definition="Generated tokens of all good requests over the cell's whole wall time, from the first request sent "
               "to the end of the last, so the slow run-out at the end is included. Failed requests give no tokens "
               "but their time counts.")
