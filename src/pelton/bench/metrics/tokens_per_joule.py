"""Output tokens per joule."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample
from pelton.bench.metrics.watched import gpu_series, integral


def _compute(sample: Sample) -> float:
    watts = sum(area / seconds for area, seconds in (integral(sample, s) for s in gpu_series(sample, "power")))
    return sum(r.output_tokens for r in sample.ok) / (watts * sample.wall_s)


METRIC = Metric(
    name="tokens_per_joule", title="Output tokens per joule", unit="tokens/J", order=163, kind="value",
    compute=_compute, formula="output tokens / (GPU power x wall time)",
    definition="Energy of the GPUs alone, over the whole of the load; the prompts' energy is in it.")
