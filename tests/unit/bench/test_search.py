import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.options import SearchOptions
from pelton.bench.results import MetricResult
from pelton.bench.search import SearchAgenda, below_knee, next_level
from pelton.errors import ConfigError


def search(passes, **options):
    """Levels in the order in which they are tried."""
    fields = {"start": 1.0, "most": 1024.0, "precision": 0.1, "is_whole": True, **options}
    verdicts = {}
    while (level := next_level(verdicts, **fields)) is not None:
        assert level not in verdicts
        assert len(verdicts) < 60
        verdicts[level] = passes(level)
    return verdicts


@given(limit=st.integers(1, 1024), start=st.integers(1, 1024))
def test_finds_every_whole_limit_exactly_or_within_the_precision(limit, start):
    verdicts = search(lambda level: level <= limit, start=float(start))
    best = max(level for level, passed in verdicts.items() if passed)
    failed = min((level for level, passed in verdicts.items() if not passed), default=None)
    assert all(level.is_integer() for level in verdicts)
    assert best <= limit
    assert best == limit or failed - best <= 1 or failed / best <= 1.1
    assert limit < 1024 or best == 1024
    assert len(verdicts) < 30


@given(limit=st.floats(0.05, 900), start=st.floats(1, 50))
def test_finds_every_rate_within_the_precision(limit, start):
    verdicts = search(lambda level: level <= limit, start=start, is_whole=False)
    passed = [level for level, ok in verdicts.items() if ok]
    failed = [level for level, ok in verdicts.items() if not ok]
    if passed:
        assert min(failed) / max(passed) <= 1.1
        assert max(passed) <= limit < min(failed)
    else:
        assert min(failed) >= start / 64
        assert min(failed) / 2 < start / 64


def test_nothing_passes():
    assert search(lambda level: False, start=8.0) == {8.0: False, 4.0: False, 2.0: False, 1.0: False}


def test_a_level_that_fails_by_chance_bounds_the_search():
    verdicts = search(lambda level: level != 16)
    assert max(level for level, ok in verdicts.items() if ok and level < 16) == 15


def options(**changes):
    return SearchOptions(url="http://x", **{"search_most": 64.0, **changes})


def run(agenda, measure):
    """Lets the agenda measure made-up cells; returns what it concludes."""
    cells = {}
    while upcoming := agenda.upcoming(cells):
        trial, spec = upcoming[0]
        metrics = {name: MetricResult(value=value) for name, value in measure(spec.load).items()}
        made = msgspec.structs.replace(spec.empty(), metrics=metrics, num_trials=trial + 1, status="complete")
        cells[spec.id] = made
    return agenda.conclude(cells), cells


def test_knee_is_where_throughput_stops_growing():
    found, _ = run(SearchAgenda(options()), lambda load: {"output_throughput": min(load.concurrency, 12) * 100.0})
    assert found.is_settled
    assert found.best == found.least_failed == 11  # 1,100 of 1,200
    assert [s.level for s in found.steps[:6]] == [1, 2, 4, 8, 16, 32]


def test_knee_below_a_level_that_fails():
    assert below_knee({1.0: 10.0, 2.0: 20.0}, 10.0) == {1.0: True, 2.0: True}
    assert below_knee({1.0: 10.0, 2.0: 20.0, 4.0: 21.0}, 10.0) == {1.0: True, 2.0: False, 4.0: False}
    assert below_knee({1.0: 10.0, 4.0: 10.5}, 10.0) == {1.0: True, 4.0: True}


def test_goodput_wants_its_share_of_requests():
    found, cells = run(SearchAgenda(options(goodput="ttft:100", attainment=95.0, num_trials=2)),
                       lambda load: {"output_throughput": 1.0, "attainment": 100.0 - load.concurrency})
    assert found.best == 5
    assert found.criterion == "at least 95 % of the requests within ttft:100"
    assert {c.num_trials for c in cells.values()} == {2}


def test_rates_must_be_served():
    found, _ = run(SearchAgenda(options(search_for="request_rate")),
                   lambda load: {"output_throughput": 1.0, "served_share": 100 * min(1.0, 10.0 / load.rate)})
    assert 9 <= found.best <= 10.6
    assert "% of the load was served" in next(s.reason for s in found.steps if not s.passed)


def test_a_search_that_was_cut_short_says_so_and_ends():
    agenda = SearchAgenda(options())
    cells = {}
    for _ in range(3):
        (_, spec), *_ = agenda.upcoming(cells)
        metrics = {"output_throughput": MetricResult(value=100.0 * spec.load.concurrency)}
        cells[spec.id] = msgspec.structs.replace(spec.empty(), metrics=metrics, status="complete")
    last = list(cells)[-1]
    cells[last] = msgspec.structs.replace(cells[last], stop_reason="the time budget was spent")
    assert agenda.upcoming(cells) == []
    found = agenda.conclude(cells)
    assert (found.best, found.least_failed, found.is_settled) == (2.0, None, False)


def test_a_search_goes_on_with_the_cells_there_are():
    def measure(load):
        return {"output_throughput": min(load.concurrency, 12) * 100.0}

    whole, cells = run(SearchAgenda(options()), measure)
    kept = dict(itertools.islice(cells.items(), 4))
    agenda = SearchAgenda(options())
    measured = []
    while upcoming := agenda.upcoming(kept):
        _, spec = upcoming[0]
        measured.append(spec.id)
        kept[spec.id] = cells[spec.id]
    assert measured == list(cells)[4:]
    assert agenda.conclude(kept) == whole


def test_sizes_follow_the_load_unless_they_are_given():
    assert options().load_at(64.0).num_requests == 256
    assert options(num_requests=5).load_at(64.0).num_requests == 5
    rate = options(search_for="request_rate")
    assert (rate.load_at(2.5).rate, rate.load_at(2.5).duration_s, rate.load_at(2.5).kind) == (2.5, 10.0, "poisson")


@pytest.mark.parametrize(("changes", "name"), [
    ({"prompt_tokens": (1, 2)}, "prompt_tokens"), ({"request_rate": (1.0,)}, "load"),
    ({"search_start": 0.0}, "search_start"),
    ({"search_start": 65.0}, "search_start"), ({"search_start": 1.5}, "search_start"), ({"attainment": 0.0}, "attain"),
    ({"search_precision": 0.0}, "search_precision")])
def test_wrong_options_name_their_field(changes, name):
    with pytest.raises(ConfigError, match=f"^{name}"):
        options(**changes)
