"""Percentiles and summaries of samples: values, confidence intervals, and how many samples each needs.

A percentile is withheld where fewer samples than it needs were taken, and its interval is left open where the samples
do not reach far enough to close it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from pelton.bench.results import Distribution, Percentile

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the normal distribution, for CONFIDENCE on two sides
RULE = ("Percentiles interpolate linearly between the two nearest ranks: for n sorted samples x[0]..x[n-1], "
        "P is the value at rank (n - 1) * P / 100 (type 7 of Hyndman and Fan 1996, NumPy's default). Those above "
        "P50 are withheld below 100 / (100 - P) samples, of which at least one is expected beyond. Intervals are "
        "of 95 % and take no distribution for granted: between order statistics, with the binomial distribution; "
        "where one request gives many samples, after Woodruff (1952) with the requests as clusters. An end that the "
        "samples do not reach is left open.")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of sorted samples, by linear interpolation (Hyndman and Fan 1996, type 7)."""
    assert ordered
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    if low + 1 >= len(ordered):
        return ordered[-1]
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (rank - low)


def num_samples_needed(percent: float) -> int:
    """Fewest samples of which at least one is expected beyond the percentile: 20 for P95, 100 for P99. The median is
    never withheld."""
    return 1 if percent <= 50 else math.ceil(round(100 / (100 - percent), 9))


def summarize(samples: Sequence[float]) -> Distribution:
    """Summary of at least one sample, each independent of the others, in the samples' own unit."""
    ordered = sorted(samples)
    ranks = {percent: _binomial_ranks(len(ordered), percent) for percent in PERCENTS}
    intervals = {percent: (None if low is None else ordered[low], None if high is None else ordered[high])
                 for percent, (low, high) in ranks.items()}
    return _distribution(ordered, intervals)


def summarize_clusters(clusters: Sequence[Sequence[float]]) -> Distribution:
    """Summary of samples of which each cluster's belong together, such as the gaps of one request.

    Pooled, they say less than as many independent ones would: the interval's width comes from how much the clusters
    differ.
    """
    ordered = sorted(value for cluster in clusters for value in cluster)
    sorted_clusters = [sorted(cluster) for cluster in clusters if cluster]
    return _distribution(ordered, {percent: _woodruff(ordered, sorted_clusters, percent) for percent in PERCENTS})


def _distribution(ordered: list[float], intervals: dict[float, tuple[float | None, float | None]]) -> Distribution:
    count = len(ordered)
    mean = math.fsum(ordered) / count
    found, missing = {}, {}
    for percent in PERCENTS:
        needed = num_samples_needed(percent)
        if count < needed:
            missing[f"p{percent:g}"] = needed - count
        else:
            low, high = intervals[percent]
            found[f"p{percent:g}"] = Percentile(value=percentile(ordered, percent), low=low, high=high)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / (count - 1)) if count > 1 else None
    return Distribution(num_samples=count, mean=mean, std=spread, min=ordered[0], max=ordered[-1], percentiles=found,
                        missing=missing)


@lru_cache(maxsize=4096)
def _binomial_ranks(count: int, percent: float) -> tuple[int | None, int | None]:
    """Indices of the order statistics between which the percentile lies with 95 % confidence; none beyond the samples.

    The number of samples below the percentile is binomial: at most `low` of them are with a chance of under 2.5 %,
    at least `high + 1` likewise (David and Nagaraja 2003, section 7.1).
    """
    share, tail = percent / 100, (1 - CONFIDENCE) / 2
    log_p, log_q = math.log(share), math.log1p(-share)
    cumulative, low, high = 0.0, None, None
    for k in range(count):
        cumulative += math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
                               + k * log_p + (count - k) * log_q)
        if cumulative <= tail:
            low = k
        if cumulative >= 1 - tail:
            high = k
            break
    return low, high


def _woodruff(ordered: list[float], clusters: list[list[float]], percent: float) -> tuple[float | None, float | None]:
    """The percentiles at both ends of an interval of the share of samples below the percentile's value."""
    count, num_clusters = len(ordered), len(clusters)
    if num_clusters < 2:
        return None, None
    share = percent / 100
    value = percentile(ordered, percent)
    squares = math.fsum((bisect_right(cluster, value) - share * len(cluster)) ** 2 for cluster in clusters)
    margin = _Z * math.sqrt(squares * num_clusters / (num_clusters - 1)) / count
    low, high = share - margin, share + margin
    last = (count - 1) / count
    return (percentile(ordered, 100 * low) if low > 0 else None,
            percentile(ordered, 100 * high) if high < last else None)
