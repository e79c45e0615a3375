"""The size of a difference and its confidence interval, on the scale of ratios.

From repeats, the logarithm of the ratio of each pair of trials (or, of unequal numbers of trials, of each trial) is one
sample, and Student's t gives the interval: it holds what differs from repeat to repeat. The figures shown are then the
geometric means over the trials, whose ratio the change is. Without three repeats on both sides the figures are those of
all requests, and the percentiles' own intervals are combined (Zou and Donner 2008, recovered variances, on logarithms);
these know only what differs from request to request. A rate of a single run tells nothing of its spread and gets no
interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pelton.bench.compare.figures import Figure
from pelton.bench.compare.records import Effect, Method, Says
from pelton.bench.results import Percentile

MIN_TRIALS = 3
ROUNDING = 1e-12  # of means of logarithms: trials that are all alike must show no difference
# Two-sided 95 % points of Student's t by degrees of freedom; beyond the list the next lower entry, which is wider.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179,
      15: 2.131, 20: 2.086, 30: 2.042, 60: 2.0, 120: 1.98}


def measure_effect(figure: Figure, base: Percentile | str, other: Percentile | str, *,
                   base_trials: Sequence[float | None] = (), other_trials: Sequence[float | None] = ()) -> Effect:
    """The effect of one figure; a text in place of a figure says why it is missing."""
    ours, theirs = (None if isinstance(side, str) else side.value for side in (base, other))
    missing = next((side for side in (base, other) if isinstance(side, str)), None)
    if missing is not None:
        return _effect(figure, ours, theirs, note=missing)
    if min(ours, theirs) <= 0:
        return _without_ratio(figure, ours, theirs)
    if _can_use(base_trials) and _can_use(other_trials):
        return _from_trials(figure, base_trials, other_trials)
    change = theirs / ours - 1
    if figure.stat is None or figure.stat == "mean":
        return _effect(figure, ours, theirs, change, note=f"an interval needs {MIN_TRIALS} trials (--num-trials)")
    low, high = _from_intervals(base, other)
    note = "" if low is not None and high is not None else "the samples do not reach far enough to close the interval"
    return _effect(figure, ours, theirs, change, low, high, "percentile intervals", note)


def _effect(figure: Figure, base: float | None, other: float | None, change: float | None = None,
            low: float | None = None, high: float | None = None, method: Method = "none", note: str = "") -> Effect:
    return Effect(metric=figure.name, title=figure.title, unit=figure.metric.unit, base=base, other=other,
                  change=change, low=low, high=high, method=method, says=_says(figure, change, low, high), note=note)


def _without_ratio(figure: Figure, base: float, other: float) -> Effect:
    """Of figures that have no logarithm: at least one is 0 or below."""
    if min(base, other) < 0:
        return _effect(figure, base, other, note="a ratio of negative figures has no meaning")
    if base > 0:
        return _effect(figure, base, other, -1.0, note="a fall to 0 has no interval")
    if other > 0:
        return _effect(figure, base, other, note="a rise from 0 has no ratio")
    return _effect(figure, base, other, 0.0, note="both are 0")


def _can_use(trials: Sequence[float | None]) -> bool:
    return len(trials) >= MIN_TRIALS and all(value is not None and value > 0 for value in trials)


def _from_trials(figure: Figure, base: Sequence[float], other: Sequence[float]) -> Effect:
    """The geometric means over the trials: their ratio is what the logarithms' interval is of."""
    ours, theirs = statistics.geometric_mean(base), statistics.geometric_mean(other)
    margin, method = _margin([math.log(v) for v in base], [math.log(v) for v in other])
    ratio, margin = theirs / ours, max(margin, ROUNDING)
    return _effect(figure, ours, theirs, ratio - 1, ratio * math.exp(-margin) - 1, ratio * math.exp(margin) - 1, method)


def _margin(base: Sequence[float], other: Sequence[float]) -> tuple[float, Method]:
    """(half the width of the interval of the difference of the means, method)."""
    if len(base) == len(other):
        spread = statistics.stdev(b - a for a, b in zip(base, other)) / math.sqrt(len(base))
        return student_t(len(base) - 1) * spread, "paired trials"
    parts = [statistics.variance(side) / len(side) for side in (base, other)]  # Welch
    weight = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (base, other)))
    freedom = sum(parts) ** 2 / weight if weight else min(len(base), len(other)) - 1
    return student_t(freedom) * math.sqrt(sum(parts)), "trials"


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
