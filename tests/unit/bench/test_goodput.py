import pytest
from helpers.bench import later, request

from pelton.bench.goodput import PRESETS, parse_goodput
from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.registry import find_metric
from pelton.bench.results import Analysis
from pelton.errors import ConfigError

FAST = request()  # ttft 10 ms, tpot 2 ms, end to end 17 ms
SLOW = later(request(index=1, first_content_us=50_000), 0)
FAILED = request(index=2, error="http_500", error_message="no", content_us=[], first_content_us=None)


def measure(name, records, goodput=None, price=None, *, is_stream=True):
    analysis = Analysis(goodput=goodput or {}, price_per_hour=price)
    return find_metric(name).measure(Sample(records, is_stream, analysis=analysis))


@pytest.mark.parametrize(("text", "targets"), [
    ("ttft:500,tpot:50", {"ttft": 500.0, "tpot": 50.0}), ("ttft:500 e2el:2000", {"ttft": 500.0, "e2e_latency": 2000.0}),
    ("ttft_scheduled:0.5", {"ttft_scheduled": 0.5}),
    ("mlperf-llama3.1-8b-interactive", {"ttft": 500.0, "tpot": 30.0})])
def test_targets_are_read(text, targets):
    assert parse_goodput(text) == targets


@pytest.mark.parametrize(("text", "message"), [
    ("", "must name a target"), ("itl:5", "targets of ttft, tpot"), ("ttft", "such as ttft:500"),
    ("ttft:0", "above 0"), ("ttft:nan", "above 0"), ("ttft:fast", "above 0"), ("ttft:1,ttft:2", "twice"),
    ("mlperf-gpt-5", "or a preset")])
def test_bad_targets_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_goodput(text)


def test_every_preset_can_be_read():
    assert all(parse_goodput(name) for name in PRESETS)


def test_goodput_counts_requests_within_all_targets_and_failed_ones_in_none():
    records = [FAST, SLOW, FAILED]
    assert measure("attainment", records, {"ttft": 20.0}).value == pytest.approx(100 / 3)
    assert measure("goodput", records, {"ttft": 20.0}).value == pytest.approx(1 / 0.017)
    assert measure("attainment", records, {"ttft": 20.0, "tpot": 1.0}).value == 0


@pytest.mark.parametrize(("changes", "targets", "is_met"), [
    ({"content_us": [], "first_content_us": None}, {"tpot": 5.0}, False),  # no text at all
    ({"content_us": [], "first_content_us": None}, {"e2e_latency": 50.0}, False),
    ({"output_tokens": 0, "content_us": [], "first_content_us": None}, {"ttft": 50.0, "tpot": 5.0}, False),
    ({"first_content_us": None}, {"ttft": 50.0}, False),  # nothing but reasoning
    ({"first_content_us": None}, {"tpot": 5.0}, True),
    ({"output_tokens": 1, "content_us": [10_000], "last_content_us": 10_000}, {"tpot": 5.0}, True),  # no gaps to keep
    ({"content_us": [10_000], "last_content_us": 10_000, "first_text_tokens": 4.0}, {"tpot": 5.0}, False)])
def test_a_latency_that_an_answer_lacks_was_not_kept(changes, targets, is_met):
    assert measure("attainment", [request(**changes)], targets).value == 100 * is_met


def test_answers_without_text_and_stream_meet_nothing():
    empty = request(is_stream=False, content_us=[], first_content_us=None, output_tokens=0)
    assert measure("attainment", [empty], {"e2e_latency": 50.0}, is_stream=False).value == 0


def test_targets_from_schedule_hold_the_wait_before_sending():
    waited = request(scheduled_us=-30_000)
    assert measure("attainment", [waited], {"ttft": 20.0}).value == 100
    assert measure("attainment", [waited], {"ttft_scheduled": 20.0}).value == 0
    assert measure("ttft_scheduled", [waited]).distribution.p50 == 40
    assert measure("queue_delay", [waited]).distribution.p50 == 30


def test_goodput_is_withheld_without_targets_or_without_a_stream_to_tell():
    assert "--goodput" in measure("goodput", [FAST]).withheld
    assert "not streamed" in measure("attainment", [FAST], {"ttft": 5.0}, is_stream=False).withheld
    assert measure("attainment", [FAST], {"e2e_latency": 20.0}, is_stream=False).value == 100


def test_cost_is_price_over_tokens():
    assert measure("cost", [FAST], price=3.6).value == pytest.approx(0.001 * 0.017 / 4 * 1e6)
    assert "--price-per-hour" in measure("cost", [FAST]).withheld
