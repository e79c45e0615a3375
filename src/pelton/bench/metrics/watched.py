"""Readings of the GPUs during a cell, for the metrics below. Declares no metric itself."""

from __future__ import annotations

from itertools import pairwise

from pelton.bench.metrics.metric import Sample, Withheld
from pelton.bench.results import Series


def gpu_series(sample: Sample, name: str) -> list[Series]:
    """One series per GPU.

    Raises:
        Withheld: the GPUs were not watched.
    """
    found = [s for s in sample.series if s.source == "gpu" and s.name == name and s.at_us]
    if not found:
        raise Withheld("; ".join(sample.series_missing) or "no GPU was watched")
    return found


def integral(sample: Sample, series: Series) -> tuple[float, float]:
    """(integral over the seconds of the load, those seconds), readings joined by straight lines.

    Raises:
        Withheld: fewer than two readings fall into the load.
    """
    area = seconds = 0.0
    for start, end in sample.spans_us.values():
        readings = [(at, value) for at, value in zip(series.at_us, series.values, strict=True) if start <= at <= end]
        for (at, value), (next_at, next_value) in pairwise(readings):
            area += (value + next_value) / 2 * (next_at - at) / 1e6
            seconds += (next_at - at) / 1e6
    if not seconds:
        raise Withheld("the load was too short to read the GPUs twice")
    return area, seconds


def mean(sample: Sample, name: str) -> list[float]:
    """Time-weighted mean of each GPU's readings over the load."""
    return [area / seconds for area, seconds in (integral(sample, s) for s in gpu_series(sample, name))]
