"""Input tokens in flight."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> float:
    return sum(r.latency_us * r.prompt_tokens for r in sample.requests) / 1e6 / sample.wall_s


METRIC = Metric(
    name="in_flight_input_tokens", title="Input tokens in flight", unit="tokens", order=110, kind="value",
    compute=_compute, formula="sum of latency x prompt tokens / wall time",
    definition="Time-weighted mean of the prompt tokens of the requests in flight: the measured number in flight "
               "times the true prompt size, not the numbers asked for.")
