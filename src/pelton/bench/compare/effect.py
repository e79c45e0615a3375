"""The size of a difference and its confidence interval, on the scale of ratios.

From repeats, the logarithm of the ratio of each pair of trials (or, of unequal numbers of trials, of each trial) is one
sample, and Student's t gives the interval: it holds what differs from repeat to repeat. Without three repeats on both
sides the percentiles' own intervals are combined (Zou and Donner 2008, recovered variances, on logarithms); these know
only what differs from request to request. A rate of a single run tells nothing of its spread and gets no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pelton.bench.compare.figures import Figure
from pelton.bench.compare.records import Effect, Method, Says
from pelton.bench.results import Percentile

MIN_TRIALS = 3
# Two-sided 95 % points of Student's t by degrees of freedom; beyond the list the next lower entry, which is wider.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179,
      15: 2.131, 20: 2.086, 30: 2.042, 60: 2.0, 120: 1.98}


def measure_effect(figure: Figure, base: Percentile | str, other: Percentile | str, *,
                   base_trials: Sequence[float | None] = (), other_trials: Sequence[float | None] = ()) -> Effect:
    """The effect of one figure; a text in place of a figure says why it is missing."""
    def make(change: float | None, low: float | None, high: float | None, method: Method, note: str = "") -> Effect:
        return Effect(metric=figure.name, title=figure.title, unit=figure.metric.unit,
                      base=None if isinstance(base, str) else base.value,
                      other=None if isinstance(other, str) else other.value, change=change, low=low, high=high,
                      method=method, says=_says(figure, change, low, high), note=note)

    missing = next((side for side in (base, other) if isinstance(side, str)), None)
    if missing is not None:
        return make(None, None, None, "none", missing)
    if base.value == other.value == 0:
        return make(0.0, None, None, "none", "both are 0")
    if base.value <= 0 or other.value <= 0:
        return make(None, None, None, "none", "a ratio to or of 0 has no meaning")
    if _can_use(base_trials) and _can_use(other_trials):
        ratio, margin, method = _from_trials(base_trials, other_trials)
        return make(math.expm1(ratio), math.expm1(ratio - margin), math.expm1(ratio + margin), method)
    change = other.value / base.value - 1
    if figure.stat is None or figure.stat == "mean":
        return make(change, None, None, "none", f"an interval needs {MIN_TRIALS} trials (--num-trials)")
    low, high = _from_intervals(base, other)
    note = "" if low is not None and high is not None else "the samples do not reach far enough to close the interval"
    return make(change, low, high, "percentile intervals", note)


def _can_use(trials: Sequence[float | None]) -> bool:
    return len(trials) >= MIN_TRIALS and all(value is not None and value > 0 for value in trials)


def _from_trials(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, Method]:
    """(mean logarithm of the ratio, half the interval's width, method)."""
    ours, theirs = [math.log(v) for v in base], [math.log(v) for v in other]
    if len(ours) == len(theirs):
        ratios = [b - a for a, b in zip(ours, theirs)]
        spread = statistics.stdev(ratios) / math.sqrt(len(ratios))
        return statistics.fmean(ratios), student_t(len(ratios) - 1) * spread, "paired trials"
    parts = [statistics.variance(side) / len(side) for side in (ours, theirs)]  # Welch
    weight = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs)))
    freedom = sum(parts) ** 2 / weight if weight else min(len(ours), len(theirs)) - 1
    return statistics.fmean(theirs) - statistics.fmean(ours), student_t(freedom) * math.sqrt(sum(parts)), "trials"


def student_t(freedom: float) -> float:
    """The two-sided 95 % point of Student's t, at most a few percent too wide."""
    return _T[max(n for n in _T if n <= max(freedom, 1))]


def _from_intervals(base: Percentile, other: Percentile) -> tuple[float | None, float | None]:
    """Ends of the interval of other / base - 1; none where an end that it needs is open."""
    a, b = math.log(base.value), math.log(other.value)
    low = high = None
    if _is_positive(other.low) and base.high is not None:
        low = math.expm1(b - a - math.hypot(b - math.log(other.low), math.log(base.high) - a))
    if _is_positive(base.low) and other.high is not None:
        high = math.expm1(b - a + math.hypot(math.log(other.high) - b, a - math.log(base.low)))
    return low, high


def _is_positive(value: float | None) -> bool:
    return value is not None and value > 0


def _says(figure: Figure, change: float | None, low: float | None, high: float | None) -> Says:
    if change is None:
        return "not known"
    if low is not None and low > 0:
        is_more = True
    elif high is not None and high < 0:
        is_more = False
    elif (low is None and change > 0) or (high is None and change < 0):
        return "not known"  # the end that matters is open
    else:
        return "no difference shown"
    if figure.better is None:
        return "changed"
    return "better" if is_more == (figure.better == "higher") else "worse"
