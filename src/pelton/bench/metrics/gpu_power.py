"""GPU power."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample
from pelton.bench.metrics.watched import mean


def _compute(sample: Sample) -> float:
    return sum(mean(sample, "power"))


METRIC = Metric(
    name="gpu_power", title="GPU power", unit="W", order=160, kind="value", compute=_compute,
    formula="time-weighted mean of NVML's power readings over the load, all watched GPUs together",
    definition="Of the GPUs alone, not of the machine around them.")
