"""Time to first reasoning."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample, Withheld


def _compute(sample: Sample) -> list[float]:
    found = [(r.first_reasoning_us - sample.start_of(r)) / 1e3 for r in sample.streamed()
             if r.first_reasoning_us is not None]
    if not found:
        raise Withheld("no answer held reasoning")
    return found


METRIC = Metric(
    name="first_reasoning", title="Time to first reasoning", unit="ms", order=14, kind="samples", compute=_compute,
    formula="t(first chunk with reasoning text) - t(sent)",
    definition="For models that think before they answer. Their time to first token counts from the answer itself, "
               "so it holds the whole of the reasoning.")
METRICS = (METRIC, METRIC.from_schedule())
