"""Time to first chunk."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.first_chunk_us - sample.start_of(r)) / 1e3 for r in sample.streamed() if r.first_chunk_us is not None]


METRIC = Metric(
    name="first_chunk", title="Time to first chunk", unit="ms", order=12, kind="samples", compute=_compute,
    formula="t(first event of the stream) - t(sent)",
    definition="To the first event whatever it holds. Where a server names the role in an event of its own before the "
               "prompt is computed, this is earlier than the first token, and tools that take it for the first token "
               "report too little.")
METRICS = (METRIC, METRIC.from_schedule())
