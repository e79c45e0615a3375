import itertools
import random

import msgspec
import pytest
from helpers.bench import later, request, result, spec
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.audit import audit, verdicts
from pelton.bench.audit.checks import search_undecided
from pelton.bench.load.tally import BUDGET_SPENT
from pelton.bench.options import SearchOptions
from pelton.bench.prompts.lengths import Lengths
from pelton.bench.report.markdown import summary
from pelton.bench.report.plots import search as search_plot
from pelton.bench.report.tables import search_steps
from pelton.bench.report.view import ReportView
from pelton.bench.results import Analysis, ClientLoad, MetricResult
from pelton.bench.search import SearchAgenda, below_knee, next_level
from pelton.bench.table import make_console, search_table
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
    assert found.best == 11  # 1,100 of 1,200
    assert [s.level for s in found.steps[:6]] == [1, 2, 4, 8, 16, 32]


def test_the_knee_and_what_lies_below_it_pass():
    found, _ = run(SearchAgenda(options()), lambda load: {"output_throughput": min(load.concurrency, 4) * 100.0})
    assert (found.best, found.least_failed, found.is_settled) == (4, 8, True)
    assert {s.level: s.passed for s in found.steps} == {1: True, 2: True, 3: True, 4: True, 8: False}
    assert [s.reason for s in found.steps if s.level >= 4] == ["400 tokens/s", "400 tokens/s, above the knee"]


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


def judging(agenda, late, *, most_trials=None, cells=None):
    """Lets the agenda measure cells of which `late(load, trial)` requests of each trial miss the targets.

    Returns what it concludes and the cells; above `most_trials` in all a time budget cuts the trial at half.
    """
    cells = {} if cells is None else cells
    num_trials = 0
    while upcoming := agenda.upcoming(cells):
        trial, spec = upcoming[0]
        before = cells.get(spec.id, spec.empty())
        assert before.num_trials == trial or trial == 0
        num_trials += 1
        is_cut = most_trials is not None and num_trials > most_trials
        done = spec.load.num_requests // 2 if is_cut else spec.load.num_requests
        within = round((before.value("attainment") or 0.0) * before.num_done / 100) + done - late(spec.load, trial)
        count = before.num_done + done
        metrics = {"attainment": MetricResult(value=100 * within / count),
                   "in_flight_requests": MetricResult(value=float(spec.load.concurrency))}
        cells[spec.id] = msgspec.structs.replace(
            before, metrics=metrics, num_trials=trial + 1, num_done=count, status="partial" if is_cut else "complete",
            stop_reason=BUDGET_SPENT if is_cut else None)
    return agenda.conclude(cells), cells


def requests_of(found):
    return {s.level: (s.passed, s.evidence.num_within, s.evidence.num_requests) for s in found.steps}


def test_one_late_request_fails_no_level():
    """Level 4 keeps the targets; of the first 32 requests of every level one was late."""
    found, _ = judging(SearchAgenda(options(goodput="ttft:40")),
                       lambda load, trial: load.num_requests if load.concurrency > 4 else int(trial == 0))
    assert (found.best, found.least_failed, found.is_settled) == (4, 5, True)
    levels = requests_of(found)
    assert levels[5] == (False, 0, 32)
    assert levels[4] == (True, 319, 320)


def test_a_level_that_passed_by_luck_is_found_out():
    """97 % within the targets are all of 32 more often than not, but not of 300."""
    found, _ = judging(SearchAgenda(options(goodput="ttft:40")), lambda load, trial: (
        32 if load.concurrency > 8 else int(trial > 0) if load.concurrency > 2 else 0))
    assert (found.best, found.least_failed) == (2, 3)
    levels = requests_of(found)
    assert not levels[4][0]
    assert levels[4][2] > 32


def test_clear_levels_are_measured_once():
    _, cells = judging(SearchAgenda(options(goodput="ttft:40", num_requests=300)),
                       lambda load, trial: 200 if load.concurrency > 4 else 0)
    assert {c.num_trials for c in cells.values()} == {1}
    _, cells = judging(SearchAgenda(options(goodput="ttft:40", attainment=60.0)),
                       lambda load, trial: 32 if load.concurrency > 4 else 0)
    assert {c.num_trials for c in cells.values()} == {1}


def test_only_levels_that_bound_the_answer_are_measured_again():
    found, cells = judging(SearchAgenda(options(goodput="ttft:40")),
                           lambda load, trial: 32 if load.concurrency > 4 else 0)
    assert {c.concurrency: c.num_trials for c in cells.values()} == {1: 1, 2: 1, 4: 10, 8: 1, 6: 1, 5: 1}
    assert found.undecided == []
    assert list(search_undecided.check(seen(found))) == []


def test_one_pause_that_makes_all_in_flight_late_fails_no_level_for_good():
    """Four late of 32 would be clearly too many for 99 %, were they not beside each other."""
    found, _ = judging(SearchAgenda(options(goodput="ttft:40")), lambda load, trial: (
        load.num_requests if load.concurrency > 4 else 4 * (load.concurrency == 4 and trial == 0)))
    assert requests_of(found)[4][1:] == (316, 320)
    assert found.undecided == [4]


class seen:
    """A view of a result that is nothing but a search."""

    def __init__(self, search):
        self.search = search


def test_a_level_that_cannot_be_decided_is_judged_by_its_share_and_named():
    found, _ = judging(SearchAgenda(options(goodput="ttft:40")), lambda load, trial: (
        load.num_requests if load.concurrency > 4 else int(load.concurrency == 4 and trial in (3, 7))))
    assert (found.best, found.is_settled, found.undecided) == (4, True, [4])
    assert found.caveat == "its requests do not decide 4"
    why = "318 of 320 within the targets: 99.38 %, 90 % interval 98.05 to 99.89"
    assert next(s.reason for s in found.steps if s.level == 4) == why
    assert {s.level: found.outcome(s) for s in found.steps if s.level in (1, 4, 5)} == {
        1: "passed", 4: "passed, undecided", 5: "did not"}
    (finding,) = search_undecided.check(seen(found))
    assert (finding.severity, finding.cells) == ("warning", ["c4-p256-o64"])
    assert "4 in flight passed with 318 of 320 requests within the targets (99.38 %, 90 % interval 98.05 to 99.89, " \
           "99 wanted); about " in finding.evidence
    assert finding.evidence.endswith("would tell")


def test_reports_show_how_many_requests_were_within_the_targets(capsys):
    found, _ = judging(SearchAgenda(options(goodput="ttft:40", search_most=1.0)), lambda load, trial: trial % 5 == 0)
    why = "318 of 320 within the targets: 99.38 %, 90 % interval 98.05 to 99.89"
    cell = spec(prompt_tokens=256, output_tokens=64)
    made = result([(cell, [later(request(), 20_000 * i, index=i) for i in range(320)])], kind="search", search=found,
                  analysis=Analysis(goodput={"ttft": 40.0}))
    assert verdicts(made)[cell.id] == "with care"
    make_console().print(search_table(made))
    table = capsys.readouterr().out
    assert "at least 1 in flight (its requests do not decide 1)" in " ".join(table.split())
    assert table.splitlines()[-1].split(maxsplit=3) == ["1", "passed,", "undecided", why]
    text = summary(ReportView(made), [])
    assert "concurrency 1 (its requests do not decide 1)." in text
    assert f"- 1: passed, undecided; {why}" in text
    assert f"<td>passed, undecided</td><td class=\"names\">{why}</td>" in search_steps(found)
    plot = search_plot.make(ReportView(made))
    assert plot.caption.endswith("Not sure yet: its requests do not decide 1.")
    assert plot.figure["data"][0]["customdata"][0].endswith(why)


@pytest.mark.parametrize(("lag_ms", "num_late", "is_named"), [(25, 8, True), (20, 8, False), (25, 60, False)])
def test_lags_of_the_client_that_may_have_failed_a_level(lag_ms, num_late, is_named):
    """Answers have their first token after 10 ms; 34 ms are wanted, which leaves 24 for the client."""
    found, _ = judging(SearchAgenda(options(goodput="ttft:34", search_most=1.0, num_requests=320)),
                       lambda load, trial: num_late)
    assert (found.best, found.least_failed, found.undecided) == (None, 1, [])
    made = result([(spec(prompt_tokens=256, output_tokens=64), [request(index=i) for i in range(9)])], kind="search",
                  search=found, analysis=Analysis(goodput={"tpot": 5.0, "ttft": 34.0}))
    assert made.cells[0].distribution("ttft").p50 == 10
    client = ClientLoad(num_workers=1, cpu_share=[0.1], loop_lag_p99_us=lag_ms * 1e3, clock_jump_us=0)
    made = msgspec.structs.replace(made, cells=[msgspec.structs.replace(made.cells[0], client=client)])
    named = [f for f in audit(made) if f.name == "search_client_late"]
    assert bool(named) is is_named
    if is_named:
        assert "8 of 320 requests outside the targets; the client woke up to 25.0 ms late (P99), and half of all " \
               "ttft left it no more than 24.0 ms of 34" in named[0].evidence


def test_a_search_without_doubts_shows_none(capsys):
    found, cells = run(SearchAgenda(options()), lambda load: {"output_throughput": min(load.concurrency, 4) * 100.0})
    made = result([(spec(concurrency=c.concurrency, prompt_tokens=256, output_tokens=64),
                    [request(index=i) for i in range(c.concurrency)]) for c in cells.values()],
                  kind="search", search=found)
    make_console().print(search_table(made))
    table = capsys.readouterr().out
    assert ": 4 in flight; 8 did not pass" in " ".join(table.split())
    assert [line.split()[:3] for line in table.splitlines() if line.split()[:1] in (["4"], ["8"])] == [
        ["4", "passed", "400"], ["8", "did", "not"]]
    assert "Not sure" not in search_plot.make(ReportView(made)).caption


def test_no_number_of_requests_shows_that_all_are_within():
    found, cells = judging(SearchAgenda(options(goodput="ttft:40", attainment=100.0)),
                           lambda load, trial: int(load.concurrency > 4))
    assert (found.best, found.undecided) == (4, [4])
    assert cells["c4-p256-o64"].num_trials == 1
    assert "no number of them would tell" in next(search_undecided.check(seen(found))).evidence


@pytest.mark.parametrize("most_trials", range(6, 12))
def test_time_that_ends_while_a_level_is_measured_again(most_trials):
    """The requests there are judge it, and the answer says that they are too few."""
    agenda = SearchAgenda(options(goodput="ttft:40"))
    found, cells = judging(agenda, lambda load, trial: load.num_requests if load.concurrency > 4 else 0,
                           most_trials=most_trials)
    assert (found.best, found.least_failed, found.is_settled, found.undecided) == (4, 5, False, [4])
    assert cells["c4-p256-o64"].num_done == 32 * (most_trials - 5) + 16
    assert "had not come to its end, its requests do not decide 4" in found.caveat


def test_a_level_measured_again_is_gone_on_with():
    def late(load, trial):
        return load.num_requests if load.concurrency > 4 else 0

    whole, cells = judging(SearchAgenda(options(goodput="ttft:40")), late)
    kept = dict(cells)
    part = kept["c4-p256-o64"]
    kept["c4-p256-o64"] = msgspec.structs.replace(part, num_trials=3, num_done=96)
    found, again = judging(SearchAgenda(options(goodput="ttft:40")), late, cells=kept)
    assert found == whole
    assert again["c4-p256-o64"].num_done == 320


@pytest.mark.parametrize(("seed", "limit"), list(itertools.product(range(10), (1, 4, 11, 40))))
def test_chance_moves_no_answer_where_levels_are_clear(seed, limit):
    """999 in 1,000 requests are within the targets up to the limit, and half beyond."""
    rng = random.Random(seed)

    def late(load, trial):
        share = 0.001 if load.concurrency <= limit else 0.5
        return sum(rng.random() < share for _ in range(load.num_requests))

    found, cells = judging(SearchAgenda(options(goodput="ttft:40", search_precision=0.01)), late)
    assert found.best == limit or found.undecided
    assert found.is_settled
    assert all(c.num_done < 2 * 299 for c in cells.values())


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


def test_several_sizes_are_refused_in_plain_words():
    with pytest.raises(ConfigError) as raised:
        options(prompt_tokens=(Lengths.parse(32), Lengths.parse("64-128")))
    assert str(raised.value) == "prompt_tokens must be one size, as a search varies only the load, got '32,64-128'"


@pytest.mark.parametrize(("changes", "name"), [
    ({"request_rate": (1.0,)}, "load"),
    ({"search_start": 0.0}, "search_start"),
    ({"search_start": 65.0}, "search_start"), ({"search_start": 1.5}, "search_start"), ({"attainment": 0.0}, "attain"),
    ({"search_precision": 0.0}, "search_precision"), ({"knee_gain": -5.0}, "knee_gain"),
    ({"knee_gain": float("nan")}, "knee_gain")])
def test_wrong_options_name_their_field(changes, name):
    with pytest.raises(ConfigError, match=f"^{name}"):
        options(**changes)
