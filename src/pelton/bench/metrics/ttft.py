"""Time to first token."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.first_content_us - sample.start_of(r)) / 1e3 for r in sample.streamed()
            if r.first_content_us is not None]


METRIC = Metric(
    name="ttft", title="Time to first token", unit="ms", order=10, kind="samples", compute=_compute,
    formula="t(first content) - t(sent)",
    definition="From just before the request is handed to an open connection to the arrival of the first chunk that "
               "holds text of the answer. Chunks without text, such as one that only names the role, and chunks of "
               "reasoning do not count. Opening a connection is not included; it happens once per slot.")
METRICS = (METRIC, METRIC.from_schedule())
