import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.percentiles import num_samples_needed, percentile, summarize


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
    assert (found.num_samples, found.mean, found.min, found.max, found.p50) == (3, 2.0, 1.0, 3.0, 2.0)


@pytest.mark.parametrize(("percent", "needed"), [(50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_samples_needed(percent, needed):
    assert num_samples_needed(percent) == needed
