"""GPU utilization."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample
from pelton.bench.metrics.watched import mean


def _compute(sample: Sample) -> float:
    found = mean(sample, "utilization")
    return sum(found) / len(found)


METRIC = Metric(
    name="gpu_utilization", title="GPU utilization", unit="%", order=161, kind="value", compute=_compute,
    formula="time-weighted mean of NVML's utilization over the load, mean of the watched GPUs",
    definition="Share of the time in which some kernel ran. A GPU on which one small kernel always runs reads 100 %: "
               "it tells idle time, not how well the time was used.")
