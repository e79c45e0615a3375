"""GPU memory."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample, Withheld
from pelton.bench.metrics.watched import gpu_series


def _compute(sample: Sample) -> float:
    spans = sample.spans_us.values()
    peaks = [max((value for at, value in zip(s.at_us, s.values, strict=True)
                  if any(start <= at <= end for start, end in spans)), default=None)
             for s in gpu_series(sample, "memory_used")]
    if None in peaks:
        raise Withheld("the load was too short to read the GPUs")
    return sum(peaks)


METRIC = Metric(
    name="gpu_memory", title="GPU memory", unit="GiB", order=162, kind="value", compute=_compute,
    formula="sum over the watched GPUs of the most memory NVML saw in use during the load",
    definition="Of everything on the GPUs, other programs included. Servers that take their cache's memory at the "
               "start show that, not what they need.")
