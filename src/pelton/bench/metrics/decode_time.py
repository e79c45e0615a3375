"""Decode time."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample


def _compute(sample: Sample) -> list[float]:
    return [(r.last_content_us - r.first_text_us) / 1e3 for r in sample.streamed()]


METRIC = Metric(
    name="decode_time", title="Decode time", unit="ms", order=40, kind="samples", compute=_compute,
    formula="t(last text) - t(first text)",
    definition="From the first chunk with text to the last. It grows with the output length: compare it only between "
               "requests of equal length.")
