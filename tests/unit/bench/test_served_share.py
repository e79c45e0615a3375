import random

import msgspec
import pytest
from helpers.bench import later, request

from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.served_share import METRIC


def queue(rate, capacity, count, *, seed=1, trial=0, offset_us=0):
    """Poisson arrivals at a server that takes one request at a time, each for the same time."""
    rng, now, free, records = random.Random(seed), 0.0, 0.0, []
    for index in range(count):
        now += rng.expovariate(rate)
        free = max(free, now) + 1 / capacity
        made = later(request(), round(now * 1e6) + offset_us, index=index, trial=trial)
        records.append(msgspec.structs.replace(made, end_us=round(free * 1e6) + offset_us))
    return records


def share(records, *, is_open_loop=True):
    return METRIC.measure(Sample(records, True, is_open_loop=is_open_loop))


@pytest.mark.parametrize("rate", [12.5, 20.0, 40.0])
def test_overload_shows_as_the_share_that_capacity_is_of_the_rate(rate):
    assert share(queue(rate, 10.0, 2000)).value == pytest.approx(1000 / rate, rel=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_keeps_up_serves_all_however_long_its_answers(seed):
    assert share(queue(5.0, 10.0, 400, seed=seed)).value > 98


def test_trials_are_fitted_about_their_own_means():
    slow = [r for t in range(2) for r in queue(20.0, 10.0, 500, seed=t, trial=t, offset_us=t * 10**9)]
    assert share(slow).value == pytest.approx(50, rel=0.06)


def test_withheld_where_it_means_nothing():
    assert "closed loop" in share(queue(5.0, 10.0, 20), is_open_loop=False).withheld
    assert "fewer than 8" in share(queue(5.0, 10.0, 5)).withheld
