"""When the requests of an open loop arrive: pure functions of a seeded generator, in seconds since the load began.

Every function yields without end, except for stages, which end with the last of them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator

from pelton.bench.results import LoadSpec, LoadStage


def constant(rate: float) -> Iterator[float]:
    """Evenly spaced, the first at 0."""
    return (k / rate for k in itertools.count())


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Independent users: exponential gaps with a mean of 1 / rate."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def gamma(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Gamma-distributed gaps with a mean of 1 / rate and a coefficient of variation of 1 / sqrt(burstiness)."""
    return itertools.accumulate(rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in itertools.count())


def staged(stages: Iterable[LoadStage], rng: random.Random) -> Iterator[tuple[float, str]]:
    """(time, stage's name) of Poisson arrivals whose rate follows the stages, until the last one ends.

    Arrivals of rate 1 are stretched by the inverse of the expected count (Çinlar 1975): no arrival is rejected, and
    equal seeds give equal arrivals however finely a stage is cut.
    """
    expected = rng.expovariate(1.0)  # the count expected by the next arrival, over all stages
    start_s = start_count = 0.0
    for stage in stages:
        count = stage.duration_s * (stage.rate + stage.end_rate) / 2
        while expected < start_count + count:
            yield start_s + _time_of(stage, expected - start_count), stage.name
            expected += rng.expovariate(1.0)
        start_s, start_count = start_s + stage.duration_s, start_count + count


def _time_of(stage: LoadStage, count: float) -> float:
    """Seconds into the stage at which `count` arrivals are expected: the root of rate t + slope t² / 2 = count."""
    slope = (stage.end_rate - stage.rate) / stage.duration_s
    return 2 * count / (stage.rate + math.sqrt(max(stage.rate**2 + 2 * slope * count, 0.0)))


def arrivals(load: LoadSpec, seed: int) -> Iterator[tuple[float, str | None]]:
    """(time, stage's name or None) of the arrivals of an open loop that is not a trace."""
    rng = random.Random(seed)
    if load.kind == "stages":
        return staged(load.stages, rng)
    if load.kind == "constant":
        times = constant(load.rate)
    elif load.kind == "poisson":
        times = poisson(load.rate, rng)
    else:
        assert load.kind == "gamma", load.kind
        times = gamma(load.rate, load.burstiness, rng)
    return ((t, None) for t in times)
