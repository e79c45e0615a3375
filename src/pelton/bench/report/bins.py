"""Equal parts of a stretch of time, and what happened in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def rate(self, bursts: Iterable[tuple[int, Sequence[int], float]]) -> list[float]:
        """Events per second in each part. A burst is (origin, times after it, weight of each event); there may be
        millions of events."""
        sums = [0.0] * (self.count + 1)
        per_us, last = 1 / self.width_us, self.count
        for origin, times, weight in bursts:
            first = origin - self.start_us
            for at in times:
                place = (first + at) * per_us
                if 0 <= place <= last:
                    sums[int(place)] += weight
        at_the_end = sums.pop()
        sums[-1] += at_the_end
        return [total * per_us * 1e6 for total in sums]
