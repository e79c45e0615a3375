import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.percentiles import num_samples_needed, percentile, summarize, summarize_clusters


def test_interpolates_between_ranks():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([10.0, 20.0], 95) == pytest.approx(19.5)
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 100) == 3.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from([0, 50, 90, 95, 99, 100]))
def test_agrees_with_numpy(values, percent):
    assert percentile(sorted(values), percent) == pytest.approx(numpy.percentile(values, percent), abs=1e-6)


def test_summary_of_unsorted_samples():
    found = summarize([3.0, 1.0, 2.0])
    assert (found.num_samples, found.mean, found.std, found.min, found.max, found.p50) == (3, 2.0, 1.0, 1.0, 3.0, 2.0)


@pytest.mark.parametrize(("percent", "needed"), [(50, 1), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_samples_needed(percent, needed):
    assert num_samples_needed(percent) == needed


def test_percentiles_with_too_few_samples_are_withheld_and_say_how_many_more():
    found = summarize([float(i) for i in range(30)])
    assert set(found.percentiles) == {"p50", "p90", "p95"}
    assert found.missing == {"p99": 70, "p99.9": 970}
    assert found.p99 is None


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    # Of 20 samples the 6th and the 15th: the tables of the sign test.
    found = summarize([float(i) for i in range(1, 21)]).percentiles["p50"]
    assert (found.low, found.high) == (6.0, 15.0)


def test_an_end_that_the_samples_do_not_reach_is_open():
    found = summarize([float(i) for i in range(1, 21)]).percentiles["p95"]  # 0.95 ** 20 is 36 %
    assert found.high is None
    assert found.low is not None
    assert summarize([1.0]).percentiles["p50"].low is None


@pytest.mark.parametrize(("percent", "count"), [("p50", 40), ("p90", 120), ("p95", 300), ("p99", 1500)])
def test_intervals_hold_the_truth_as_often_as_they_say(percent, count):
    draw = random.Random(percent)
    truth = -math.log(1 - float(percent[1:]) / 100)  # of an exponential distribution
    num_held = 0
    for _ in range(400):
        found = summarize([draw.expovariate(1) for _ in range(count)]).percentiles[percent]
        num_held += found.low <= truth <= (math.inf if found.high is None else found.high)
    assert num_held / 400 >= 0.93  # at least 95 %, less three standard errors of the 400 trials


def test_samples_of_one_request_say_less_than_independent_ones():
    draw = random.Random(3)
    clusters = []
    for _ in range(60):
        level = draw.gauss(10, 1)  # what the request has in common with itself
        clusters.append([level + draw.gauss(0, 0.1) for _ in range(50)])
    pooled = summarize([value for cluster in clusters for value in cluster]).percentiles["p50"]
    clustered = summarize_clusters(clusters).percentiles["p50"]
    assert clustered.value == pooled.value
    assert clustered.high - clustered.low > 4 * (pooled.high - pooled.low)


def test_intervals_over_clusters_hold_the_truth():
    draw = random.Random(5)
    num_held = 0
    for _ in range(200):
        clusters = []
        for _ in range(40):
            level = draw.gauss(10, 1)
            clusters.append([level + draw.gauss(0, 0.2) for _ in range(20)])
        found = summarize_clusters(clusters).percentiles["p50"]
        num_held += found.low <= 10 <= found.high
    assert num_held / 200 >= 0.89


def test_one_cluster_has_no_interval():
    found = summarize_clusters([[1.0, 2.0, 3.0], []]).percentiles["p50"]
    assert (found.value, found.low, found.high) == (2.0, None, None)
