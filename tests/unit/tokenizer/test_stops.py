import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pelton.tokenizer.stops import StopMatcher


def brute_force(text, stops, first_accepted):
    for end in range(max(first_accepted + 1, 1), len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return max(found, key=len), end
    return None


@settings(deadline=None, max_examples=1000)
@given(st.text("ab", max_size=24), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
       st.lists(st.integers(0, 24), max_size=6), st.integers(0, 24))
@example("aaaa", ["aa", "a"], [1], 0)
@example("ababa", ["aba"], [], 4)  # the second match shares a character with the one passed over
def test_first_end_and_longest_stop_win_for_every_cut(text, stops, cuts, first_accepted):
    borders = sorted({0, len(text), min(first_accepted, len(text)), *(c for c in cuts if c < len(text))})
    matcher = StopMatcher(tuple(stops))
    for start, end in itertools.pairwise(borders):
        found = matcher.feed(text[start:end], accept=start >= first_accepted)
        if found:
            stop, position = found
            assert (stop, start + position) == brute_force(text, stops, first_accepted)
            return
        held = max(k for stop in stops for k in range(len(stop)) if text[:end].endswith(stop[:k]))
        assert matcher.num_held == held
    assert brute_force(text, stops, first_accepted) is None


def test_a_repetitive_stop_string_takes_linear_work():
    class Counting(str):
        comparisons = 0
        __hash__ = str.__hash__

        def __getitem__(self, index):
            Counting.comparisons += 1
            return super().__getitem__(index)

    matcher = StopMatcher((Counting("a" * 1000 + "b"),))
    Counting.comparisons = 0
    for _ in range(100):
        assert matcher.feed("a" * 100 + "c") is None
    assert Counting.comparisons < 4 * 100 * 101
