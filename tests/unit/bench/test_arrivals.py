import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.load.arrivals import arrivals, constant, gamma, poisson, staged
from pelton.bench.results import LoadSpec, LoadStage

NUM = 20_000


def first(times, count):
    return list(itertools.islice(times, count))


def gaps(times):
    return [b - a for a, b in itertools.pairwise([0.0, *times])]


def test_constant_is_even_and_does_not_drift():
    assert first(constant(4), 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert next(itertools.islice(constant(3), 30_000, None)) == 10_000.0


@given(seed=st.integers(0, 2**32), rate=st.floats(0.01, 1e4))
def test_poisson_is_the_sum_of_the_generators_own_gaps(seed, rate):
    rng = random.Random(seed)
    assert first(poisson(rate, random.Random(seed)), 5) == list(
        itertools.accumulate(rng.expovariate(rate) for _ in range(5)))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_and_spread_asked_for(burstiness):
    found = gaps(first(gamma(5.0, burstiness, random.Random(7)), NUM))
    spread = 1 / math.sqrt(burstiness)
    assert statistics.fmean(found) == pytest.approx(0.2, rel=5 * spread / math.sqrt(NUM))
    assert statistics.stdev(found) / statistics.fmean(found) == pytest.approx(spread, rel=0.06)


def test_poisson_counts_have_the_variance_of_their_mean():
    counts = [0] * 1000
    for t in itertools.takewhile(lambda t: t < 1000, poisson(20.0, random.Random(3))):
        counts[int(t)] += 1
    assert statistics.fmean(counts) == pytest.approx(20, abs=5 * math.sqrt(20 / 1000))
    assert statistics.variance(counts) / statistics.fmean(counts) == pytest.approx(1, abs=0.25)


def stage(rate, end_rate, duration_s, name="s"):
    return LoadStage(name=name, rate=rate, end_rate=end_rate, duration_s=duration_s)


def test_stages_follow_their_rates_and_end():
    found = list(staged([stage(10, 10, 50, "low"), stage(10, 90, 50, "ramp"), stage(0, 0, 10, "rest"),
                         stage(90, 90, 50, "high")], random.Random(5)))
    times = [t for t, _ in found]
    assert times == sorted(times)
    assert all(0 <= t <= 50 for t, name in found if name == "low")
    assert all(110 <= t < 160 for t, name in found if name == "high")
    for name, expected in (("low", 500), ("ramp", 2500), ("rest", 0), ("high", 4500)):
        count = sum(n == name for _, n in found)
        assert abs(count - expected) <= 5 * math.sqrt(expected), name
    early = sum(50 <= t < 75 for t in times)  # a ramp from 10 to 50 a second: 750 of its 2500
    assert abs(early - 750) < 5 * math.sqrt(750)


@given(seed=st.integers(0, 2**32), cut=st.floats(0.05, 0.95))
def test_cutting_a_stage_changes_no_arrival(seed, cut):
    whole = [t for t, _ in staged([stage(5, 25, 4)], random.Random(seed))]
    middle = 5 + 20 * cut
    parts = [t for t, _ in staged([stage(5, middle, 4 * cut), stage(middle, 25, 4 * (1 - cut))], random.Random(seed))]
    assert parts == pytest.approx(whole, abs=1e-9)


def test_ramps_to_and_from_nothing():
    for low, high in ((0, 40), (40, 0)):
        times = [t for t, _ in staged([stage(low, high, 10)], random.Random(1))]
        assert all(0 <= t <= 10 for t in times)
        assert abs(len(times) - 200) < 5 * math.sqrt(200)


@pytest.mark.parametrize("load", [
    LoadSpec(kind="constant", rate=2.0), LoadSpec(kind="poisson", rate=2.0),
    LoadSpec(kind="gamma", rate=2.0, burstiness=0.5), LoadSpec(kind="stages", stages=[stage(2, 2, 100)])])
def test_equal_seeds_make_equal_arrivals(load):
    assert first(arrivals(load, 9), 20) == first(arrivals(load, 9), 20)
    assert load.kind == "constant" or first(arrivals(load, 9), 20) != first(arrivals(load, 10), 20)
