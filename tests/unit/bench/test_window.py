import random

import pytest
from helpers.bench import later, request

from pelton.bench.cell import closed
from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.registry import find_metric
from pelton.bench.results import LoadSpec, Window
from pelton.bench.window import find_windows

RATE = LoadSpec(kind="poisson", rate=100.0, num_requests=40)


def loop(concurrency, num_each):
    """So many requests one after the other in each slot, the slots 1 ms apart; each takes 17 ms."""
    return [later(request(index=i * concurrency + slot), 17_000 * i + 1000 * slot)
            for i in range(num_each) for slot in range(concurrency)]


def test_a_closed_loops_window_begins_when_all_slots_are_taken_and_ends_with_the_first_that_stays_free():
    (window,) = find_windows(closed(2, 24), loop(2, 12))
    assert (window.start_us, window.end_us) == (1000, 12 * 17_000)


def test_each_trial_has_a_window_of_its_own():
    first = loop(2, 12)
    second = [later(r, 1_000_000, trial=1) for r in first]
    windows = find_windows(closed(2, 24), [*second, *first])
    assert [(w.trial, w.start_us) for w in windows] == [(0, 1000), (1, 1_001_000)]


@pytest.mark.parametrize(("load", "records", "reason"), [
    (closed(8, 4), loop(2, 2), "8 requests were never in flight together"),
    (closed(2, 4), loop(2, 2), "3 answers ended while the load was full; 10 are needed"),
    (LoadSpec(kind="trace", trace="a.jsonl"), loop(2, 12), "the load changes by plan"),
    (RATE, [request(error="http_500", error_message="no")], "no request was answered"),
])
def test_a_load_without_a_steady_part_says_why(load, records, reason):
    (window,) = find_windows(load, records)
    assert window.withheld == reason
    assert window.start_us is None


def test_arrivals_are_steady_from_one_median_latency_after_the_first_to_the_last():
    records = [later(request(index=i), 10_000 * i) for i in range(40)]
    (window,) = find_windows(RATE, records)
    assert (window.start_us, window.end_us) == (17_000, 390_000)


def measure(name, records, load):
    sample = Sample(records, True, windows=find_windows(load, records))
    return find_metric(name).measure(sample)


def test_steady_throughputs_count_what_arrives_inside_the_window():
    records, load = loop(2, 12), closed(2, 24)
    length_s = 0.203  # 1 ms to 204 ms
    # All tokens of 24 answers but none before 1 ms; the last answer of the second slot ends after the window, its
    # last token at 204 ms within.
    assert measure("steady_output_throughput", records, load).value == pytest.approx(96 / length_s)
    assert measure("steady_input_throughput", records, load).value == pytest.approx(24 * 16 / length_s)
    assert measure("steady_total_throughput", records, load).value == pytest.approx(480 / length_s)


def test_tokens_in_the_window_are_those_of_a_count_one_by_one():
    rng = random.Random()
    windows = [Window(trial=0, start_us=rng.randrange(50_000), end_us=60_000 + rng.randrange(50_000)),
               Window(trial=1, withheld="too short")]
    records = []
    for index in range(60):
        sent = rng.randrange(-20_000, 120_000)
        arrivals = sorted(rng.randrange(40_000) for _ in range(rng.randrange(6)))
        records.append(request(index=index, trial=index % 2, sent_us=sent, content_us=arrivals, output_tokens=7,
                               end_us=sent + 41_000, error=rng.choice([None, None, "timeout"])))
    inside = 0.0
    for r in records:
        marks = [(r.sent_us + at, 7 / len(r.content_us)) for at in r.content_us] or [(r.end_us, 7)]
        if r.trial == 0 and r.is_ok:
            inside += sum(tokens for at, tokens in marks if windows[0].start_us < at <= windows[0].end_us)
    found = find_metric("steady_output_throughput").measure(Sample(records, True, windows=windows)).value
    assert found == pytest.approx(inside / (windows[0].end_us - windows[0].start_us) * 1e6)


def test_steady_throughput_beats_the_whole_runs_by_the_run_out():
    last = later(request(index=24), 12 * 17_000)
    records, load = [*loop(2, 12), last], closed(2, 25)
    steady = measure("steady_output_throughput", records, load).value
    assert measure("output_throughput", records, load).value < steady


def test_steady_throughput_is_withheld_with_the_windows_reason():
    found = measure("steady_output_throughput", loop(2, 2), closed(8, 4))
    assert found.withheld == "8 requests were never in flight together"
