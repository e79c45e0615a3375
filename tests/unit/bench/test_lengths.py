import random
import statistics
from itertools import islice

import pytest

from pelton.bench.prompts.lengths import Lengths
from pelton.errors import ConfigError


@pytest.mark.parametrize(("text", "kind", "mean", "shown"), [
    ("128", "fixed", 128, "128"), (7, "fixed", 7, "7"), ("100-200", "uniform", 150, "100-200"),
    ("512~64", "normal", 512, "512~64"), ("512±64.5", "normal", 512, "512~64.5"), ("5+-1", "normal", 5, "5~1"),
    ("data", "data", None, "data")])
def test_lengths_are_read_and_shown(text, kind, mean, shown):
    made = Lengths.parse(text)
    assert (made.kind, made.mean, str(made)) == (kind, mean, shown)
    assert Lengths.parse(str(made)) == made


@pytest.mark.parametrize("text", ["", "0", "-3", "200-100", "0-5", "a", "5~", "1.5", "DATA", "5-"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        Lengths.parse(text)


@pytest.mark.parametrize("text", ["10000001", "5-10000001", "10000001~5", "5~10000001"])
def test_lengths_beyond_any_model_are_refused(text):
    with pytest.raises(ValueError, match="at most 10,000,000"):
        Lengths.parse(text)
    assert Lengths.parse("10000000").mean == 10_000_000


def test_draws_follow_the_distribution():
    def drawn(text):
        return list(islice(Lengths.parse(text).draws(random.Random(3)), 4000))

    assert set(drawn("9")) == {9}
    uniform = drawn("10-14")
    assert set(uniform) == {10, 11, 12, 13, 14}
    assert abs(statistics.fmean(uniform) - 12) < 0.1
    normal = drawn("500~20")
    assert abs(statistics.fmean(normal) - 500) < 2
    assert abs(statistics.stdev(normal) - 20) < 1.5


def test_normal_lengths_below_what_can_be_made_are_drawn_again():
    drawn = list(islice(Lengths.parse("10~8").draws(random.Random(1), least=6), 500))
    assert min(drawn) == 6
    with pytest.raises(ConfigError, match="nearly all are below 900"):
        next(Lengths.parse("10~1").draws(random.Random(1), least=900))
