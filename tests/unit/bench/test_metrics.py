import pytest
from helpers.bench import later, request

from pelton.bench.metrics.metric import Sample
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.protocols.answer import Answer
from pelton.bench.record import first_text_tokens
from pelton.bench.results import Series

METRICS = {m.name: m for m in all_metrics()}


def measure(name, requests, *, is_stream=True):
    return METRICS[name].measure(Sample(requests, is_stream))


def test_registry_finds_one_metric_per_file():
    assert {"ttft", "itl", "tpot", "decode_time", "e2e_latency", "output_throughput", "input_throughput",
            "request_throughput", "in_flight_requests", "in_flight_input_tokens", "cached_tokens",
            "errors"} <= set(METRICS)
    for metric in METRICS.values():
        assert metric.formula
        assert metric.unit
        assert metric.definition.endswith(".")


@pytest.mark.parametrize(("name", "value"), [
    ("ttft", 10.0), ("itl", 2.0), ("tpot", 2.0), ("decode_time", 6.0), ("e2e_latency", 17.0),
    ("request_output_rate", 4 / 0.017), ("prompt_tokens", 16.0), ("output_tokens", 4.0)])
def test_distributions_of_one_request(name, value):
    found = measure(name, [request()]).distribution
    assert found.p50 == pytest.approx(value)


# Two requests of 17 ms, the second 10 ms after the first: 27 ms of wall time.
PAIR = [request(), later(request(server_prompt_tokens=32), 10_000, index=1)]


@pytest.mark.parametrize(("name", "value"), [
    ("output_throughput", 8 / 0.027), ("input_throughput", 48 / 0.027), ("request_throughput", 2 / 0.027),
    ("in_flight_requests", 34 / 27), ("in_flight_input_tokens", (17 * 16 + 17 * 32) / 27), ("errors", 0.0)])
def test_values_of_two_requests(name, value):
    assert measure(name, PAIR).value == pytest.approx(value)


def test_in_flight_is_what_was_measured_not_what_was_asked_for():
    idle = [request(), later(request(), 83_000, index=1)]  # 100 ms, busy for 34 of them
    assert measure("in_flight_requests", idle).value == pytest.approx(0.34)


def test_failed_requests_leave_latencies_but_not_time():
    failed = later(request(error="http_500", error_message="no", output_tokens=0, content_us=[]), 20_000, index=1)
    requests = [request(), failed]
    assert measure("ttft", requests).distribution.num_samples == 1
    assert measure("output_throughput", requests).value == pytest.approx(4 / 0.037)
    assert measure("errors", requests).value == 1
    assert measure("in_flight_requests", requests).value == pytest.approx(34 / 37)


def test_time_between_trials_does_not_count():
    trials = [request(), later(request(), 1_000_000, trial=1)]
    assert measure("output_throughput", trials).value == pytest.approx(8 / 0.034)
    assert measure("in_flight_requests", trials).value == pytest.approx(1.0)


def test_cancelled_requests_are_neither_errors_nor_latencies():
    requests = [request(), later(request(was_cancelled=True), 20_000, index=1)]
    assert measure("errors", requests).value == 0
    assert measure("e2e_latency", requests).distribution.num_samples == 1


def test_reasoning_counts_as_text_but_not_as_the_first_content():
    thinks = request(first_reasoning_us=10000, first_content_us=14000)
    assert measure("ttft", [thinks]).distribution.p50 == 14
    assert measure("decode_time", [thinks]).distribution.p50 == 6


def test_true_prompt_size_is_the_servers():
    assert measure("prompt_tokens", [request(server_prompt_tokens=129)]).distribution.p50 == 129
    assert measure("prompt_tokens", [request(server_prompt_tokens=None)]).distribution.p50 == 16


def test_inter_token_latency_is_withheld_where_chunks_are_not_tokens():
    found = measure("itl", [request(output_tokens=8)])
    assert found.distribution is None
    assert "2.00 tokens" in found.withheld
    assert measure("tpot", [request(output_tokens=8)]).distribution.p50 == pytest.approx(6 / 7)


@pytest.mark.parametrize(("stamps", "texts", "num_tokens", "first"), [
    ([5, 6, 7, 8], ["ab", "c", "d", "e"], 4, 1.0),  # a token each
    ([5, 6, 7, 8], ["ab", "c", "d", "e"], 3, 1.0),  # fewer tokens than chunks: miscounted, and said so elsewhere
    ([5, 6, 7, 8], ["ab cd ef gh"] * 4, 16, 4.0),
    ([5, 6, 7, 8], ["ab", "abcdef", "abcdef", "abcdef"], 10, 1.0),  # the first token alone, then several at once
    ([5, 5, 7, 8], ["ab"] * 4, 4, 2.0),  # two chunks in one read
    ([5, 5, 5, 5], ["ab"] * 4, 4, 4.0),
    ([5], ["ab" * 16], 16, 16.0)])
def test_tokens_that_came_with_the_first_text(stamps, texts, num_tokens, first):
    answer = Answer(text="".join(texts))
    for stamp, text in zip(stamps, texts, strict=True):
        answer.stamp_text(stamp, "", text)
    assert first_text_tokens(answer, num_tokens) == first


def test_time_per_token_is_of_the_tokens_after_the_first_text():
    """16 tokens, 4 ms each, in chunks of four."""
    merged = request(output_tokens=16, first_text_tokens=4.0, content_us=[10_000, 26_000, 42_000, 58_000],
                     last_content_us=58_000)
    assert measure("tpot", [merged]).distribution.p50 == 4.0
    assert measure("decode_rate", [merged]).distribution.p50 == 250.0
    whole = request(output_tokens=16, first_text_tokens=16.0, content_us=[10_000], last_content_us=10_001)
    assert measure("tpot", [whole]).withheld == measure("decode_rate", [whole]).withheld == "no samples"


def test_streaming_metrics_are_withheld_without_streaming():
    for name in ("ttft", "itl", "tpot", "decode_time"):
        assert measure(name, [request()], is_stream=False).withheld == "the answers were not streamed"


def test_single_token_answers_have_no_time_per_output_token():
    one = request(output_tokens=1, content_us=[10000], last_content_us=10000)
    assert measure("tpot", [one]).withheld == "no samples"
    assert measure("decode_time", [one]).distribution.p50 == 0


def test_cached_tokens_only_where_reported():
    assert "does not report" in measure("cached_tokens", [request()]).withheld
    assert measure("cached_tokens", [request(cached_tokens=12)]).distribution.max == 12


def test_no_requests_at_all():
    assert all(m.measure(Sample([], True)).withheld == "no request ended" for m in METRICS.values())


def test_first_chunk_and_first_reasoning_stand_apart_from_the_first_token():
    thinks = request(first_chunk_us=3000, first_reasoning_us=6000, first_content_us=14000)
    assert measure("first_chunk", [thinks]).distribution.p50 == 3
    assert measure("first_reasoning", [thinks]).distribution.p50 == 6
    assert measure("ttft", [thinks]).distribution.p50 == 14
    assert measure("first_reasoning", [request()]).withheld == "no answer held reasoning"


def test_latencies_from_schedule_say_so_and_differ_by_the_delay_before_sending():
    late = request(scheduled_us=-5000)
    for name in ("ttft", "first_chunk", "e2e_latency"):
        sent, scheduled = (measure(n, [late]).distribution.p50 for n in (name, f"{name}_scheduled"))
        assert scheduled == sent + 5
        assert "t(scheduled)" in METRICS[f"{name}_scheduled"].formula


def test_rate_of_one_user_leaves_the_first_token_out():
    assert measure("decode_rate", [request()]).distribution.p50 == pytest.approx(500)
    assert measure("decode_rate", [request(content_us=[10_000], last_content_us=10_000)]).withheld == "no samples"
    assert measure("total_throughput", [request()]).value == pytest.approx(20 / 0.017)


def gpu(name, values, *, every_us=1000):
    return Series(source="gpu", name=name, unit="W", labels={"gpu": "0"},
                  at_us=[every_us * i for i in range(len(values))], values=values)


def test_gpu_readings_are_averaged_over_the_load():
    series = [gpu("power", [100.0] * 10 + [300.0] * 30), gpu("power", [50.0] * 40),
              gpu("memory_used", [1.0, 7.0, 3.0]), gpu("utilization", [80.0] * 20)]
    sample = Sample([request()], True, series=series)  # 0 to 17 ms
    watts = (9 * 100 + 200 + 7 * 300) / 17 + 50
    assert METRICS["gpu_power"].measure(sample).value == pytest.approx(watts)
    assert METRICS["tokens_per_joule"].measure(sample).value == pytest.approx(4 / (watts * 0.017))
    assert METRICS["gpu_memory"].measure(sample).value == 7
    assert METRICS["gpu_utilization"].measure(sample).value == pytest.approx(80)


def test_gpu_metrics_are_withheld_with_the_reason():
    sample = Sample([request()], True, series_missing=["GPUs: nvidia-ml-py is not installed"])
    assert METRICS["gpu_power"].measure(sample).withheld == "GPUs: nvidia-ml-py is not installed"
    short = Sample([request()], True, series=[gpu("power", [1.0, 1.0], every_us=20_000)])
    assert "too short" in METRICS["tokens_per_joule"].measure(short).withheld
