"""Equal parts of a stretch of time, and what happened in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Bins:
    """`count` equal parts of the time from `start_us` to `end_us`."""

    start_us: int
    end_us: int
    count: int

    @property
    def width_us(self) -> float:
        return max(self.end_us - self.start_us, 1) / self.count

    def mean(self, intervals: Iterable[tuple[float, float, float]]) -> list[float]:
        """Time-weighted mean, in each part, of the sum of the weights of the (start, end, weight) that cover it."""
        width = self.width_us
        ends = [0.0] * (self.count + 1)  # what intervals cover of the parts in which they start or end
        steps = [0.0] * (self.count + 1)  # where whole parts begin and cease to be covered
        for start, end, weight in intervals:
            a = min(max((start - self.start_us) / width, 0.0), self.count)
            b = min(max((end - self.start_us) / width, 0.0), self.count)
            if b <= a:
                continue
            first, last = int(a), int(b)
            if first == last:
                ends[first] += weight * (b - a)
                continue
            ends[first] += weight * (first + 1 - a)
            ends[last] += weight * (b - last)
            steps[first + 1] += weight
            steps[last] -= weight
        return [covered + part for covered, part in zip(accumulate(steps[:-1]), ends)]

    def rate(self, events: Iterable[tuple[float, float]]) -> list[float]:
        """Sum of the weights of the (time, weight) in each part, per second."""
        sums = [0.0] * self.count
        for at, weight in events:
            if self.start_us <= at <= self.end_us:
                sums[min(int((at - self.start_us) / self.width_us), self.count - 1)] += weight
        seconds = self.width_us / 1e6
        return [total / seconds for total in sums]
