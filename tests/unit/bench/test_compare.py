"""Results against each other: same workload, effects and intervals, rules, files, baselines."""

from __future__ import annotations

import json
import math
import random
import statistics
import xml.etree.ElementTree as ET

import msgspec
import pytest
from helpers.bench import later, request, result, spec
from helpers.browser import BROWSER, NO_BROWSER, browse, drawings

from pelton import cli
from pelton.bench.cell import closed
from pelton.bench.compare.comparison import Named, compare, read_named
from pelton.bench.compare.effect import measure_effect, student_t
from pelton.bench.compare.figures import compared_figures, parse_figure
from pelton.bench.compare.junit import to_junit
from pelton.bench.compare.markdown import to_markdown
from pelton.bench.compare.page import comparison_plots, render_comparison
from pelton.bench.compare.rules import parse_rule
from pelton.bench.compare.workload import asked_for, workload_hash
from pelton.bench.files import prepare_output_dir, write_result
from pelton.bench.load.stages import read_stages
from pelton.bench.percentiles import summarize
from pelton.bench.results import LoadSpec, Percentile, SessionSpec
from pelton.errors import ConfigError

NUM_REQUESTS = 60


def made(*, slowness: float = 1.0, num_trials: int = 1, seed: object = None, seconds_off: float = 0.0, **workload):
    """A cell of one request at a time whose first tokens take about 10 ms times the slowness."""
    rng = random.Random(seed)
    records, at = [], round(seconds_off * 1e6)
    for trial in range(num_trials):
        for index in range(NUM_REQUESTS):
            first = round(rng.gauss(10_000, 700) * slowness)
            times = [first, first + 2000, first + 4000, first + 6000]
            records.append(later(request(trial=trial, index=index, first_byte_us=first, first_chunk_us=first,
                                         first_content_us=first, content_us=times, last_content_us=times[-1],
                                         end_us=times[-1] + 1000), at))
            at += times[-1] + 1100
    return of_trials(spec(num_requests=NUM_REQUESTS), records, num_trials,
                     **{"loads": [closed(1, NUM_REQUESTS)], **workload})


def of_trials(shape, records, num_trials: int, **workload):
    """A result of one cell of so many trials."""
    found = result([(shape, records)], workload={"num_trials": num_trials, **workload})
    return msgspec.structs.replace(found, cells=[msgspec.structs.replace(c, num_trials=num_trials)
                                                 for c in found.cells])


def uneven(*slowness: float):
    """A result of trials of which each has its own slowness."""
    records = [msgspec.structs.replace(record, trial=trial) for trial, slow in enumerate(slowness)
               for record in made(slowness=slow, seed=trial, seconds_off=10.0 * trial).requests]
    return of_trials(spec(num_requests=NUM_REQUESTS), records, len(slowness), loads=[closed(1, NUM_REQUESTS)])


def with_requests(found, num: int, **changes):
    """The same result with other fields in its first so many requests."""
    return msgspec.structs.replace(found, requests=[
        msgspec.structs.replace(record, **(changes if number < num else {}))
        for number, record in enumerate(found.requests)])


def failing(found, num: int):
    return with_requests(found, num, error="http", error_message="HTTP 503", http_status=503)


def cached(found):
    """Its prompts came from a cache, for which the audit fails the cell."""
    return with_requests(found, NUM_REQUESTS, cached_tokens=12)


def held(base, other, *rules: str, **options):
    return compare([Named("a", "a.json", base), Named("b", "b.json", other)],
                   rules=[parse_rule(rule) for rule in rules], **options)


def effect_of(comparison, name: str):
    return next(e for e in comparison.cells[0].effects if e.metric == name)


def test_workloads_are_the_same_whatever_the_seed_the_server_and_the_trials():
    base = made()
    other = msgspec.structs.replace(made(seed=3, num_trials=2),
                                    workload=msgspec.structs.replace(base.workload, seed=99, num_trials=2),
                                    target=msgspec.structs.replace(base.target, url="http://elsewhere:1"))
    assert workload_hash(base) == workload_hash(other)
    assert json.dumps(asked_for(base), sort_keys=True) == json.dumps(asked_for(other), sort_keys=True)


@pytest.mark.parametrize("changed", [
    {"prompt_tokens": [17]}, {"output_tokens": [5]}, {"num_warmup": 3}, {"temperature": 0.5}, {"fixed_output": False},
    {"prompts": "blocks again and again"}, {"loads": [closed(2, NUM_REQUESTS)]}, {"loads": [closed(1, 7)]}])
def test_another_workload_is_refused_with_the_fields_named(changed):
    with pytest.raises(ConfigError, match=f"another workload.*{next(iter(changed))}"):
        held(made(), made(**changed))
    forced = held(made(), made(**changed), force=True)
    assert forced.is_forced
    assert any(text.startswith(next(iter(changed))) for text in forced.sides[1].differences)


def test_another_tokenizer_route_or_request_is_another_workload():
    base = made()
    for name, value in (("tokenizer_sha256", "1" * 64), ("endpoint", "completions"), ("protocol", "ollama"),
                        ("extra_inputs", {"cache_prompt": False})):
        other = msgspec.structs.replace(made(), target=msgspec.structs.replace(base.target, **{name: value}))
        with pytest.raises(ConfigError, match=name):
            held(base, other)
        forced = held(base, other, force=True)
        assert workload_hash(base) != workload_hash(other)
        for page in (render_comparison(forced), to_markdown(forced)):
            assert f"b measured another workload than a: {name}" in page


def test_loads_are_told_without_what_they_leave_open():
    staged = LoadSpec(kind="closed_stages", concurrency=2, stages=read_stages("c1:3,c2:9req"))
    with pytest.raises(ConfigError) as caught:
        held(made(), made(loads=[staged]))
    assert (f"loads: [kind closed, concurrency 1, num_requests {NUM_REQUESTS}] and [kind closed_stages, concurrency 2, "
            "stages [name 1: 1 in flight, duration_s 3.0, concurrency 1, end_concurrency 1; name 2: 2 in flight, "
            "num_requests 9, concurrency 2, end_concurrency 2]]") in str(caught.value)


def test_other_conversations_are_another_workload():
    told = [SessionSpec(num_turns=3, turn_tokens=8, think_time_s=pause) for pause in (0.0, 1.5)]
    with pytest.raises(ConfigError, match=r"session.*think_time_s 1\.5"):
        held(made(session=told[0]), made(session=told[1]))


def test_the_same_asked_for_and_other_work_done_is_refused_too():
    base, other = made(), made()
    shorter = [msgspec.structs.replace(r, output_tokens=2) for r in other.requests]
    other = msgspec.structs.replace(other, requests=shorter)
    with pytest.raises(ConfigError, match=r"different work.*output tokens 4 and 2"):
        held(base, other)
    assert held(base, other, force=True).cells[0].different_work == ["output tokens 4 and 2 on average"]


def test_results_without_a_common_cell_are_refused_even_by_force():
    other = result([(spec(concurrency=2, num_requests=2), [request(), later(request(), 100)])])
    with pytest.raises(ConfigError, match="no cell in common"):
        held(made(), other, force=True)


def test_a_difference_within_the_noise_is_not_shown_and_a_large_one_is():
    rng = random.Random()
    same = held(made(seed=rng.random(), num_trials=4), made(seed=rng.random(), num_trials=4))
    slower = held(made(seed=1, num_trials=4), made(seed=2, slowness=1.5, num_trials=4))
    effect = effect_of(slower, "ttft_p50")
    assert effect.method == "paired trials"
    assert effect.says == "worse"
    assert effect.low < 0.5 < effect.high
    assert effect_of(slower, "output_throughput").says == "worse"
    assert abs(effect_of(same, "ttft_p50").change) < 0.1
    faster = held(made(seed=2, slowness=1.5, num_trials=4), made(seed=1, num_trials=4))
    assert effect_of(faster, "ttft_p50").says == "better"
    assert effect_of(faster, "output_throughput").says == "better"


def test_single_runs_get_intervals_of_percentiles_and_none_of_rates():
    single = held(made(seed=1), made(seed=2, slowness=1.5))
    effect = effect_of(single, "ttft_p50")
    assert effect.method == "percentile intervals"
    assert 0.2 < effect.low < effect.change < effect.high < 0.8
    rate = effect_of(single, "output_throughput")
    assert (rate.low, rate.high, rate.says) == (None, None, "not known")
    assert "3 trials" in rate.note


def test_paired_trials_cancel_what_moves_both_sides():
    """Both sides drift alike from trial to trial; only pairs show that they differ by a twentieth."""
    figure = parse_figure("output_throughput")
    base = [100.0, 140.0, 80.0, 120.0]
    value = Percentile(value=100.0, low=None, high=None)
    paired = measure_effect(figure, value, value, base_trials=base, other_trials=[b * 1.05 for b in base])
    assert paired.low == pytest.approx(0.05)
    assert paired.high == pytest.approx(0.05)
    unpaired = measure_effect(figure, value, value, base_trials=base, other_trials=[b * 1.05 for b in base][:3])
    assert unpaired.method == "trials"
    assert unpaired.says == "no difference shown"


def test_the_figures_shown_have_the_change_that_is_shown():
    """One slow trial of the base moves the pooled P95 and the geometric mean very differently."""
    base, other = uneven(1.0, 1.0, 4.0), uneven(1.5, 1.5, 1.5)
    for sides in ((base, other), (base, uneven(1.5, 1.5, 1.5, 1.5)), (made(seed=1), made(seed=2, slowness=1.5)),
                  (staged(seed=1, slowness=1.0, num_trials=3), staged(seed=2, slowness=1.5, num_trials=3))):
        effects = [e for cell in held(*sides).cells for e in cell.effects if e.base]
        assert any(e.change is not None for e in effects)
        assert all(e.change == e.other / e.base - 1 for e in effects if e.change is not None)
    found = held(base, other, "ttft_p95 > +1ms", "ttft_p95 > 16ms", "ttft_p95 < 17ms")
    effect = effect_of(found, "ttft_p95")
    alone = [effect_of(held(side, made(seed=9)), "ttft_p95").base
             for side in (made(slowness=slow, seed=trial) for trial, slow in enumerate((1.0, 1.0, 4.0)))]
    assert effect.base == pytest.approx(statistics.geometric_mean(alone))
    assert effect.base < 20 < base.cells[0].distribution("ttft").p95  # by which the others would be far faster
    assert [r.outcome for r in found.rules] == ["passed", "failed", "failed"]
    assert effect.difference == effect.other - effect.base


def test_trials_that_are_all_alike_show_no_difference_by_rounding():
    figure, any_value = parse_figure("itl_p50"), Percentile(value=1.0, low=None, high=None)
    for us in range(1, 2000):
        effect = measure_effect(figure, any_value, any_value, base_trials=[us / 1000] * 3, other_trials=[us / 1000] * 4)
        assert effect.says == "no difference shown", us


def test_what_a_figure_is_of_is_said():
    legend = "figures are geometric means over the trials where every trial of both sides has one"
    single, repeated = held(made(seed=1), made(seed=2)), held(uneven(1, 1, 1), uneven(1, 1, 1))
    assert legend not in to_markdown(single)
    assert legend in to_markdown(repeated)
    assert legend in render_comparison(repeated)
    assert "over all its requests" not in render_comparison(repeated)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Coverage on fresh samples of a known ratio of medians, both ways of making an interval; bounds of 4 sigma."""
    rng, figure, true, rounds = random.Random(), parse_figure("ttft_p50"), 1.2, 300
    hits = {"percentiles": 0, "trials": 0}
    for _ in range(rounds):
        base = [[rng.lognormvariate(0, 0.3) for _ in range(25)] for _ in range(4)]
        other = [[true * rng.lognormvariate(0, 0.3) for _ in range(25)] for _ in range(4)]
        pooled = [summarize([x for trial in side for x in trial]).percentiles["p50"] for side in (base, other)]
        medians = [[statistics.median(trial) for trial in side] for side in (base, other)]
        for name, trials in (("percentiles", ((), ())), ("trials", medians)):
            effect = measure_effect(figure, *pooled, base_trials=trials[0], other_trials=trials[1])
            hits[name] += effect.low <= true - 1 <= effect.high
    least = 0.95 - 4 * math.sqrt(0.95 * 0.05 / rounds)
    assert min(hits.values()) / rounds > least, hits


def test_students_t_is_never_too_narrow():
    known = {1: 12.706, 4: 2.776, 11: 2.201, 25: 2.060, 1000: 1.962}  # tables of the distribution
    for freedom, value in known.items():
        assert value <= student_t(freedom) < value * 1.03


def test_zero_and_withheld_figures_are_said_and_not_divided():
    figure = parse_figure("errors")
    zero, two = Percentile(value=0.0, low=None, high=None), Percentile(value=2.0, low=None, high=None)
    assert measure_effect(figure, zero, zero).change == 0.0
    effect = measure_effect(figure, zero, two)
    assert (effect.change, effect.says, effect.difference) == (None, "not known", 2.0)
    effect = measure_effect(figure, two, zero, base_trials=[2.0] * 3, other_trials=[0.0] * 3)
    assert (effect.change, effect.low, effect.high, effect.says) == (-1.0, None, None, "not known")
    below = Percentile(value=-1.0, low=None, high=None)
    assert measure_effect(figure, two, below).change is None
    assert measure_effect(figure, "withheld", two).note == "withheld"


def test_every_figure_can_be_named_in_a_rule():
    for figure in compared_figures():
        threshold = "1" if figure.metric.unit == "%" else "+1%"
        assert parse_rule(f"{figure.name} > {threshold}").figure == figure


@pytest.mark.parametrize(("text", "form", "threshold"), [
    ("ttft_p95 > +10%", "change", 0.1), ("output_throughput<-5%", "change", -0.05), ("ttft_p99.9 >= +20ms",
                                                                                     "difference", 20.0),
    ("ttft_p95 > 1.5s", "level", 1500.0), ("attainment < 99", "level", 99.0), ("attainment < 99%", "level", 99.0),
    ("itl_mean > +0.5", "difference", 0.5), ("goodput < 3 requests/s", "level", 3.0)])
def test_forms_of_rules(text, form, threshold):
    rule = parse_rule(text)
    assert (rule.form, rule.threshold) == (form, pytest.approx(threshold))


@pytest.mark.parametrize(("text", "message"), [
    ("ttft_p95 > 10%", "needs its sign"), ("ttft_p95", "must be FIGURE"), ("ttft > +10%", "name one of its statistics"),
    ("ttft_p97 > +10%", "no figure"), ("speed > +10%", "no figure"), ("ttft_p95 > +10 tokens", "is in ms"),
    ("ttft_p95 = +10%", "must be FIGURE"), ("output_throughput_p95 < -1%", "no figure"), ("", "must be FIGURE")])
def test_rules_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_rule(text)


def test_rules_fail_pass_and_cannot_be_judged():
    found = held(made(seed=1), made(seed=2, slowness=1.5), "ttft_p50 > +10%", "ttft_p50 > +80%", "ttft_p50 > +2ms",
                 "ttft_p50 > 9ms", "ttft_p99 > +1%", "goodput < 1")
    assert [r.outcome for r in found.rules] == ["failed", "passed", "failed", "failed", "not known", "not known"]
    assert "99" in found.rules[4].reason
    assert "no targets" in found.rules[5].reason
    assert len(found.broken) == 5


def test_significance_asks_that_the_whole_interval_is_beyond():
    base, other = made(seed=1), made(seed=2, slowness=1.5)
    effect = effect_of(held(base, other), "ttft_p50")
    inside = f"ttft_p50 > +{100 * (effect.low + effect.change) / 2:.2f}%"
    below = f"ttft_p50 > +{100 * effect.low - 1:.2f}%"
    assert [r.outcome for r in held(base, other, inside, below).rules] == ["failed", "failed"]
    found = held(base, other, inside, below, "output_throughput < -1%", needs_significance=True)
    assert [r.outcome for r in found.rules] == ["passed", "failed", "passed"]  # a single run's rate has no interval


@pytest.mark.parametrize("needs_significance", [False, True])
def test_a_rise_from_zero_is_more_than_any_percentage_and_a_fall_to_it_is_all(needs_significance):
    rules = "errors > +10%", "errors >= +900%", "errors < +10%", "errors <= -10%", "errors > +4"
    none, five = made(seed=1), failing(made(seed=2), 5)
    risen = held(none, five, *rules, needs_significance=needs_significance).rules
    assert [r.outcome for r in risen] == ["failed", "failed", "passed", "passed", "failed"]
    assert all("0 -> 5 requests" in r.reason for r in risen)
    fallen = held(five, none, *rules, needs_significance=needs_significance).rules
    assert [r.outcome for r in fallen] == ["passed", "passed", "failed", "failed", "passed"]
    assert fallen[0].reason == "5 -> 0 requests, -100.0 %"
    still = held(none, made(seed=2), *rules, needs_significance=needs_significance).rules
    assert [r.outcome for r in still] == ["passed", "passed", "failed", "passed", "passed"]


@pytest.mark.parametrize(("spoil_base", "spoil_other", "sides"), [
    (True, False, "a (prompts_cached)"), (False, True, "b (prompts_cached)"),
    (True, True, "a (prompts_cached) and b (prompts_cached)")])
def test_no_rule_is_judged_by_what_the_audit_failed_unless_forced(spoil_base, spoil_other, sides):
    base, other = (cached(side) if spoil else side
                   for side, spoil in ((made(seed=1), spoil_base), (made(seed=2, slowness=1.5), spoil_other)))
    rules = "ttft_p50 > +80%", "ttft_p50 > +10%", "errors > 5"
    found = held(base, other, *rules)
    assert [r.outcome for r in found.rules] == ["not known"] * 3
    assert all(r.reason.startswith(f"the audit failed {sides}; ") for r in found.rules)
    suite = ET.fromstring(to_junit(found)).find("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("0", "3")
    for page in (to_markdown(found), render_comparison(found)):
        assert "the audit failed c1-p16-o4 (prompts_cached); see its own report" in page
    assert [r.outcome for r in held(base, other, *rules, force=True).rules] == ["passed", "failed", "passed"]


def test_failed_requests_break_their_rule_though_the_audit_fails_the_cell_for_them():
    found = held(made(seed=1), failing(made(seed=2), 13), "errors > +10%", "errors < +10%", "ttft_p50 > +90%")
    assert [r.outcome for r in found.rules] == ["failed", "not known", "not known"]
    assert found.rules[0].reason.startswith("the audit failed b (requests_failed); 0 -> 13 requests")


def staged(*, slowness: float, num_trials: int = 1, seed: object = None):
    """A cell of two stages, of which only the second is `slowness` times as slow."""
    load = LoadSpec(kind="closed_stages", concurrency=1, stages=read_stages("c1:30req,c1:30req"))
    first, second = load.stages
    made_up = made(seed=seed, num_trials=num_trials)
    shape, records = spec(load=load), []
    for number, record in enumerate(made_up.requests):
        is_second = number % NUM_REQUESTS >= 30
        shift = round((slowness - 1) * 10_000) if is_second else 0
        records.append(msgspec.structs.replace(
            record, cell=shape.id, stage=second.name if is_second else first.name,
            first_content_us=record.first_content_us + shift, content_us=[t + shift for t in record.content_us],
            last_content_us=record.last_content_us + shift, end_us=record.end_us + shift))
    return of_trials(shape, records, num_trials, loads=[load])


@pytest.mark.parametrize(("num_trials", "method"), [(1, "percentile intervals"), (4, "paired trials")])
def test_each_stage_has_effects_of_its_own(num_trials, method):
    found = held(staged(seed=1, slowness=1.0, num_trials=num_trials),
                 staged(seed=2, slowness=1.5, num_trials=num_trials), "ttft_p50 > +10%", "output_throughput < -90%")
    whole, *stages = found.cells
    assert whole.stage is None
    assert [(c.cell, c.label) for c in stages] == [
        (whole.cell, f"{whole.label}, stage {stage.name}") for stage in read_stages("c1:30req,c1:30req")]
    first, second = (next(e for e in c.effects if e.metric == "ttft_p50") for c in stages)
    assert (first.says, second.says) == ("no difference shown", "worse")
    assert first.method == second.method == method
    assert second.change == pytest.approx(0.5, abs=0.05)
    assert [r.cell for r in found.rules] == [whole.cell] * 2  # rules are of whole cells
    assert all(e.base is not None or e.other is not None for c in stages for e in c.effects)
    markdown = to_markdown(found)
    assert markdown.count("`output_throughput`") == 1  # of a stage it would be a rate of the whole load
    assert markdown.count("`steady_output_throughput`") == 2
    assert stages[1].label in render_comparison(found)


def test_the_files_of_a_comparison_say_the_same():
    found = held(made(seed=1), made(seed=2, slowness=1.5), "ttft_p50 > +10%", "goodput < 1", "ttft_p50 > +900%")
    suite = ET.fromstring(to_junit(found)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [case.get("name") for case in suite] == [r.rule for r in found.rules]
    text = to_markdown(found)
    assert "**failed**" in text
    assert "`ttft_p50` ms" in text
    page = render_comparison(found)
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert set(figures) == {"side-by-side", "changes"}
    assert [trace["name"] for trace in figures["side-by-side"][0]["data"]] == ["a", "b"]
    assert "http://" not in page.replace("http://127.0.0.1", "").replace("http://www.w3.org", "").split("<script>")[0]


@pytest.fixture
def places(tmp_path):
    for name, made_result in (("old", made(seed=1)), ("new", made(seed=2, slowness=1.5))):
        write_result(made_result, prepare_output_dir(str(tmp_path / name)))
    return tmp_path


def test_the_command_writes_its_files_and_ends_with_the_rules_status(places, capsys):
    old, new = str(places / "old"), str(places / "new")
    out = places / "out"
    assert cli.main(["bench", "compare", old, new, "--output-dir", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.md"]
    assert json.loads((out / "compare.json").read_text())["schema"] == "pelton.bench.compare/1"
    junit = places / "j.xml"
    status = cli.main(["bench", "compare", old, new, "--fail-if", "ttft_p50 > +10%", "--fail-if", "ttft_p50 > +90%",
                       "--junit", str(junit), "--json"])
    assert status == 4
    assert ET.parse(junit).getroot().find("testsuite").get("failures") == "1"
    assert cli.main(["bench", "compare", old, new, "--fail-if", "ttft_p50 > +90%"]) == 0
    capsys.readouterr()
    assert cli.main(["bench", "compare", old, old]) == 1
    assert "different files" in capsys.readouterr().err


def test_results_are_named_by_what_tells_them_apart(places):
    assert [n.name for n in read_named([str(places / "old"), str(places / "new" / "results.json")])] == ["old", "new"]


def test_a_baseline_is_stored_once_and_checked_in_one_command(places, monkeypatch, capsys):
    monkeypatch.setenv("PELTON_CACHE", str(places / "cache"))
    old, new = str(places / "old"), str(places / "new")
    rule = ["--fail-if", "ttft_p50 > +10%"]
    assert cli.main(["bench", "baseline", "check", "main", new, *rule]) == 1
    assert "no baseline 'main'" in capsys.readouterr().err
    assert cli.main(["bench", "baseline", "save", "main", old]) == 0
    assert (places / "cache" / "baselines" / "main.json").is_file()
    assert cli.main(["bench", "baseline", "save", "main", old]) == 1
    assert cli.main(["bench", "baseline", "save", "main", old, "--replace"]) == 0
    assert cli.main(["bench", "baseline", "check", "main", new, *rule]) == 4
    assert cli.main(["bench", "baseline", "save", "../main", old]) == 1


def test_a_check_that_saves_moves_the_baseline_only_when_it_passes(places, capsys):
    where = ["--baseline-dir", str(places / "kept")]
    kept = places / "kept" / "main.json"
    old, new = str(places / "old"), str(places / "new")
    assert cli.main(["bench", "baseline", "check", "main", old, "--save", *where]) == 0
    first = kept.read_bytes()
    assert cli.main(["bench", "baseline", "check", "main", new, "--save", "--fail-if", "ttft_p50 > +10%", *where]) == 4
    assert kept.read_bytes() == first
    assert cli.main(["bench", "baseline", "check", "main", new, "--save", "--fail-if", "ttft_p50 > +90%", *where]) == 0
    assert kept.read_bytes() != first
    capsys.readouterr()


def test_a_check_of_what_the_audit_failed_neither_passes_nor_moves_the_baseline(places, capsys):
    where = ["--baseline-dir", str(places / "kept"), "--fail-if", "ttft_p50 > +10%"]
    kept = places / "kept" / "main.json"
    old, faster = str(places / "old"), str(places / "faster")
    write_result(cached(made(seed=2, slowness=0.5)), prepare_output_dir(faster))
    assert cli.main(["bench", "baseline", "check", "main", old, "--save", *where]) == 0
    first = kept.read_bytes()
    capsys.readouterr()
    assert cli.main(["bench", "baseline", "check", "main", faster, "--save", *where]) == 4
    assert "the audit failed now (prompts_cached)" in capsys.readouterr().out
    assert kept.read_bytes() == first
    assert cli.main(["bench", "baseline", "check", "main", faster, *where, "--force"]) == 0


def test_a_partial_result_makes_no_baseline(places, capsys):
    write_result(result([(spec(num_requests=2), [request()])], status="partial"), places / "old")
    assert cli.main(["bench", "baseline", "save", "main", str(places / "old"), "--baseline-dir", str(places)]) == 1
    assert "partial" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_browser_draws_every_figure_of_a_comparison_without_a_network(tmp_path):
    sides = [Named(name, f"{name}.json", made(slowness=slowness, num_trials=3, seed=name))
             for name, slowness in (("a", 1.0), ("b", 1.5), ("c", 0.8))]
    comparison = compare(sides)
    expected = drawings(comparison_plots(comparison))
    assert set(expected) == {"side-by-side", "changes"}
    assert set(expected["side-by-side"]) == {3}
    assert set(expected["changes"]) == {2}
    assert browse(render_comparison(comparison), tmp_path) == {"drawn": expected, "faults": [], "resources": []}
