"""Percentiles and summaries of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pelton.bench.results import Distribution

RULE = ("Percentiles interpolate linearly between the two nearest ranks: for n sorted samples x[0]..x[n-1], "
        "P is the value at rank (n - 1) * P / 100 (type 7 of Hyndman and Fan 1996, NumPy's default).")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted samples, by linear interpolation (Hyndman and Fan 1996, type 7)."""
    assert ordered
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    if low + 1 >= len(ordered):
        return ordered[-1]
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (rank - low)


def num_samples_needed(percent: float) -> int:
    """Fewest samples of which at least one is expected beyond the percentile: 20 for P95, 100 for P99."""
    return math.ceil(round(100 / (100 - percent), 9))


def summarize(samples: Sequence[float]) -> Distribution:
    """Summary of at least one sample, in the samples' own unit."""
    ordered = sorted(samples)
    return Distribution(num_samples=len(ordered), mean=math.fsum(ordered) / len(ordered), min=ordered[0],
                        max=ordered[-1], p50=percentile(ordered, 50), p90=percentile(ordered, 90),
                        p95=percentile(ordered, 95), p99=percentile(ordered, 99))
