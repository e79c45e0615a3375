"""What a count of successes says of their share: its exact interval, and how many more would tell.

They are taken as independent, but where it is said how many one cause can make fail together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

CONFIDENCE = 0.9
TAIL = (1 - CONFIDENCE) / 2
SURE_TAIL = 0.005  # for a verdict that ends a search at its first requests
MOST_TO_TELL = 1_000_000
BISECTIONS = 50


@lru_cache(maxsize=4096)
def share_interval(successes: int, count: int) -> tuple[float, float]:
    """The share's interval of 90 % (Clopper and Pearson 1934), both ends from 0 to 1."""
    assert 0 <= successes <= count
    assert count
    low = 0.0 if not successes else 1 - _bisect(lambda p: _at_most(count - successes, count, p) > TAIL)
    high = 1.0 if successes == count else _bisect(lambda p: _at_most(successes, count, p) > TAIL)
    return low, high


def enough_to_tell(share: float) -> int:
    """Trials of which all succeed, or none, that show a share of more, or less; about 3 / (1 - share). 0 for a share of
    0 or 1, which no number can show."""
    if not 0 < share < 1:
        return 0
    return math.ceil(math.log(TAIL) / math.log(max(share, 1 - share)))


@lru_cache(maxsize=4096)
def num_to_tell(successes: int, count: int, share: float) -> int | None:
    """About how many trials with the same successes in each hundred show that their share is more, or less; none where
    no number would, or only millions."""
    found = successes / count
    if found == share:
        return None
    low, high = count, count
    while not _tells(found, high, share):
        low, high = high, 2 * high
        if high > MOST_TO_TELL:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tells(found, middle, share) else (middle, high)
    return high


def falls_short(successes: int, count: int, share: float, *, forgiven: int = 0) -> bool:
    """Whether so few succeeded that the share is less beyond doubt, though so many failures may have had one cause."""
    return _at_most(min(successes + forgiven, count), count, share) <= SURE_TAIL


def _tells(found: float, count: int, share: float) -> bool:
    """Whether the share lies outside the interval; decided without it."""
    successes = round(found * count)
    if successes > share * count:
        return _at_most(count - successes, count, 1 - share) <= TAIL
    return _at_most(successes, count, share) <= TAIL


def _bisect(is_below: Callable[[float], bool]) -> float:
    """The probability up to which a condition holds that holds at 0 and not at 1."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _at_most(most: int, count: int, p: float) -> float:
    """Chance of at most so many successes of probability p. Sums the side of the distribution that has fewer terms."""
    if most >= count or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if most > count // 2:
        return 1 - _sum(range(count - most), count, 1 - p)
    return _sum(range(most + 1), count, p)


def _sum(numbers: range, count: int, p: float) -> float:
    log_p, log_q = math.log(p), math.log1p(-p)
    return math.fsum(math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * log_p
                              + (count - k) * log_q) for k in numbers)
