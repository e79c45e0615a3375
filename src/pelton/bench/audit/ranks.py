"""Whether one set of samples tends to be larger than another, without assuming a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 2.576  # one-sided, 0.5 %: a sweep has many cells, and each is asked


def is_larger(first: Sequence[float], second: Sequence[float]) -> bool:
    """Mann-Whitney U test, normal approximation with correction for ties (Mann and Whitney 1947)."""
    pooled = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    count, rank_sum, ties, at = len(pooled), 0.0, 0, 0
    while at < count:
        end = at
        while end < count and pooled[end][0] == pooled[at][0]:
            end += 1
        rank_sum += (at + 1 + end) / 2 * sum(group == 0 for _, group in pooled[at:end])
        ties += (end - at) ** 3 - (end - at)
        at = end
    n, m = len(first), len(second)
    variance = n * m / 12 * ((count + 1) - ties / (count * (count - 1)))
    if variance <= 0:
        return False
    return (rank_sum - n * (n + 1) / 2 - n * m / 2) / math.sqrt(variance) > _Z
