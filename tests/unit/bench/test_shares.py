import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.shares import enough_to_tell, falls_short, num_to_tell, share_interval


@pytest.mark.parametrize(("successes", "count", "low", "high"), [
    (31, 32, 0.86015, 0.99840), (0, 10, 0.0, 0.25887), (10, 10, 0.74113, 1.0), (1, 2, 0.02532, 0.97468),
    (5, 10, 0.22244, 0.77756)])
def test_intervals_as_in_tables(successes, count, low, high):
    assert share_interval(successes, count) == pytest.approx((low, high), abs=1e-5)


@given(count=st.integers(1, 200), data=st.data())
def test_an_interval_holds_the_share_and_mirrors_the_failures(count, data):
    successes = data.draw(st.integers(0, count))
    low, high = share_interval(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    assert share_interval(count - successes, count) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("share", "enough"), [(0.99, 299), (0.95, 59), (0.5, 5), (0.05, 59), (1.0, 0)])
def test_enough_to_tell(share, enough):
    assert enough_to_tell(share) == enough
    if enough:
        better = max(share, 1 - share)
        assert share_interval(enough, enough)[0] > better >= share_interval(enough - 1, enough - 1)[0]


@pytest.mark.parametrize(("successes", "count", "share"), [(32, 32, 0.99), (31, 32, 0.99), (319, 320, 0.99),
                                                           (9, 10, 0.95), (9, 10, 0.5)])
def test_so_many_would_tell(successes, count, share):
    needed = num_to_tell(successes, count, share)
    low, high = share_interval(round(successes / count * needed), needed)
    assert not low <= share <= high
    assert needed >= count


def test_the_share_itself_is_never_told():
    assert num_to_tell(99, 100, 0.99) is None
    assert num_to_tell(10, 10, 1.0) is None
    assert num_to_tell(98_999, 100_000, 0.99) is None


@pytest.mark.parametrize(("successes", "count", "forgiven", "falls"), [
    (31, 32, 0, False), (30, 32, 0, False), (29, 32, 0, True), (29, 32, 1, False), (24, 32, 8, False),
    (21, 32, 8, True), (0, 32, 16, True), (0, 4, 2, True), (0, 1, 0, False), (32, 32, 8, False)])
def test_failures_that_may_have_one_cause_are_forgiven(successes, count, forgiven, falls):
    """Of 99 %, three of 32 are too many beyond doubt."""
    assert falls_short(successes, count, 0.99, forgiven=forgiven) is falls
