import pytest
from prometheus_client.parser import text_string_to_metric_families

from pelton.engine.messages import Stats
from pelton.metrics.registry import Registry
from pelton.metrics.serving import OUTCOMES, ServingMetrics

STATS = Stats(num_running=3, num_waiting=5, num_blocks_used=7, num_blocks_free=11, num_blocks_cached=2, num_steps=13,
              num_preemptions=1, num_prompt_tokens=100, num_cached_tokens=64, num_generated_tokens=40, step_host_ms=0.5)


def parse(text):
    families = list(text_string_to_metric_families(text.decode()))
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    return {family.name: family for family in families}, samples


def test_every_metric_parses_and_has_a_help_text_and_a_unit_or_noun():
    families, _ = parse(ServingMetrics().render(STATS))
    assert len(families) == 16
    for name, family in families.items():
        assert name.startswith("pelton_")
        assert family.documentation.endswith(".")
        assert (family.type == "histogram") <= name.endswith("_seconds")


def test_engine_figures_are_taken_over():
    _, samples = parse(ServingMetrics().render(STATS))
    expected = {"pelton_engine_up": 1, "pelton_requests_running": 3, "pelton_requests_waiting": 5,
                "pelton_kv_blocks_used": 7, "pelton_kv_blocks_free": 11, "pelton_kv_blocks_cached": 2,
                "pelton_step_host_seconds": 0.0005, "pelton_prompt_tokens_total": 100,
                "pelton_cached_prompt_tokens_total": 64, "pelton_generated_tokens_total": 40, "pelton_steps_total": 13,
                "pelton_preemptions_total": 1}
    assert {name: samples[(name,)] for name in expected} == expected


def test_a_dead_engine_has_no_gauges_but_keeps_its_counters():
    metrics = ServingMetrics()
    metrics.render(STATS)
    _, samples = parse(metrics.render(None))
    assert samples[("pelton_engine_up",)] == 0
    assert ("pelton_requests_running",) not in samples
    assert samples[("pelton_generated_tokens_total",)] == 40


def test_outcomes_are_all_there_from_the_start():
    metrics = ServingMetrics()
    metrics.requests.add(label="stop")
    _, samples = parse(metrics.render(None))
    assert {o: samples[("pelton_requests_total", o)] for o in OUTCOMES} == dict.fromkeys(OUTCOMES, 0) | {"stop": 1}
    with pytest.raises(KeyError):
        metrics.requests.add(label="lost")


def test_histogram_buckets_are_cumulative_and_bounds_inclusive():
    registry = Registry()
    histogram = registry.histogram("x_seconds", "X.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    _, samples = parse(registry.render())
    assert samples == {("x_seconds_bucket", "0.1"): 2, ("x_seconds_bucket", "1.0"): 3, ("x_seconds_bucket", "+Inf"): 4,
                       ("x_seconds_count",): 4, ("x_seconds_sum",): pytest.approx(7.65)}


def test_two_servers_count_apart():
    one, two = ServingMetrics(), ServingMetrics()
    one.requests.add(label="stop")
    assert parse(two.render(None))[1][("pelton_requests_total", "stop")] == 0
