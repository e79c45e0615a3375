"""What the report's figures hold, against slow and obvious computations."""

import math
import random

import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.report.bins import Bins
from pelton.bench.report.plots import make_plots
from pelton.bench.report.plots.distributions import MOST_SAMPLES_DRAWN, curve
from pelton.bench.report.plots.pareto import frontier
from pelton.bench.results import Analysis, HardwareFacts, LoadSpec, SearchResult, SearchStep, Series
from pelton.config import ModelConfig


def plots(*args, **kwargs):
    return {p.id: p for p in make_plots(result(*args, **kwargs))}


def requests(count, *, step=17_001, **changes):
    return [later(request(**changes), step * i, index=i) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_bins_hold_time_weighted_means(seed):
    rng = random.Random(seed)
    bins = Bins(1000, 1000 + 60 * 40, 60)
    spans = [(a := rng.randrange(500, 3600), a + rng.randrange(0, 900), rng.choice((1.0, 7.0))) for _ in range(40)]
    slow = [sum(w for t in range(1000 + 40 * i, 1000 + 40 * (i + 1)) for a, b, w in spans if a <= t < b) / 40
            for i in range(60)]
    assert bins.mean(spans) == pytest.approx(slow)


def test_bins_hold_rates():
    bins = Bins(1000, 4_001_000, 4)
    assert bins.rate([(1000, (0, 1_500_000), 1.0), (1_000_000, (1_000, 600_000), 2.0), (4_001_000, (0,), 4.0),
                      (0, (0,), 9.0), (4_000_000, (1_500_000,), 9.0)]) == pytest.approx([1, 5, 0, 4])


@pytest.mark.parametrize("count", [1, 5, MOST_SAMPLES_DRAWN, MOST_SAMPLES_DRAWN + 1, 5000])
def test_curves_say_what_share_lies_within(count):
    rng = random.Random(count)
    ordered = sorted(rng.lognormvariate(0, 1) for _ in range(count))
    xs, ys = curve(ordered)
    assert xs == sorted(xs)
    assert (xs[-1], ys[-1]) == (ordered[-1], 100)
    for x, y in zip(xs, ys):
        within = 100 * sum(v <= x for v in ordered) / count
        assert within == pytest.approx(y, abs=200 / count + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_frontier_is_what_no_point_beats(seed):
    rng = random.Random(seed)
    points = [(rng.randrange(20), rng.randrange(20)) for _ in range(30)]
    slow = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
    assert frontier(points) == sorted(slow)


def test_percentiles_carry_their_intervals_as_error_bars():
    made = result([(spec(num_requests=60), [
        later(request(first_content_us=10_000 + 100 * i), 17_001 * i, index=i) for i in range(60)])])
    (trace,) = make_plots(made)[0].figures["P50"]["data"]
    found = made.cells[0].distribution("ttft").percentiles["p50"]
    assert trace["y"][0] + trace["error_y"]["array"][0] == pytest.approx(found.high, rel=1e-4)
    assert trace["y"][0] - trace["error_y"]["arrayminus"][0] == pytest.approx(found.low, rel=1e-4)
    assert found.low < found.value < found.high


def test_withheld_percentiles_say_how_many_they_need():
    cells = [(spec(concurrency=c, prompt_tokens=size, num_requests=12), requests(12, server_prompt_tokens=size))
             for c in (1, 2) for size in (16, 900)]
    heat = plots(cells)["heat-maps"].figures["TTFT P95 (ms)"]["data"][0]
    assert all("needs 8 more" in text for row in heat["text"] for text in row)
    assert all(z is None for row in heat["z"] for z in row)


def test_heat_maps_mark_failed_cells():
    cells = [(spec(concurrency=c, prompt_tokens=size, num_requests=20), requests(20, server_prompt_tokens=size))
             for c in (1, 8) for size in (16, 900)]  # one at a time: eight are never in flight
    heat = plots(cells)["heat-maps"].figure["data"][0]
    assert [["✕" in text for text in row] for row in heat["text"]] == [[False, True], [False, True]]


def test_loads_of_another_kind_have_lines_and_maps_of_their_own():
    rates = [LoadSpec(kind="poisson", rate=r, num_requests=20) for r in (1.0, 2.0)]
    cells = [(spec(load=load, prompt_tokens=size), requests(20, server_prompt_tokens=size))
             for load in [spec(num_requests=20).load, *rates] for size in (16, 900)]
    found = plots(cells)
    assert {t["name"] for t in found["ttft-over-tokens"].figure["data"]} == {
        f"{size} tokens in, {kind}" for size in (16, 900) for kind in ("closed", "poisson")}
    assert list(found["heat-maps"].figures) == [f"{title}, poisson arrivals" for title in (
        "TTFT P50 (ms)", "TTFT P95 (ms)", "output tokens/s")]
    assert found["heat-maps"].figure["data"][0]["x"] == ["1", "2"]


def test_stages_have_no_window_and_are_drawn_all_the_same():
    load = LoadSpec(kind="stages", duration_s=1.0)
    found = plots([(spec(load=load), requests(20))])
    assert found["timeline"].figure["layout"]["shapes"] == []
    assert "heat-maps" not in found


def test_timeline_shows_windows_gauges_and_gpus_on_one_clock():
    watched = [Series(source="gpu", name="power", unit="W", labels={"gpu": "1"}, at_us=[0, 100_000],
                      values=[70.0, 90.0]),
               Series(source="server", name="vllm:num_requests_running", unit="", at_us=[0, 50_000, 9_000_000],
                      values=[1.0, 2.0, 3.0])]
    found = plots([(spec(num_requests=30), requests(30))], series=watched)
    figure = found["timeline"].figure
    (shape,) = figure["layout"]["shapes"]
    (window,) = result([(spec(num_requests=30), requests(30))]).cells[0].windows
    assert (shape["x0"], shape["x1"]) == (window.start_us / 1e6, window.end_us / 1e6)
    by_name = {t["name"]: t for t in figure["data"]}
    assert by_name["server: running"]["y"] == [1.0, 2.0]  # the third reading was taken after the cell
    assert by_name["GPU 1: power"]["x"] == [0.0, 0.1]
    assert figure["layout"][f"yaxis{by_name['GPU 1: power']['yaxis'][1:]}"]["title"]["text"] == "power (W)"
    assert list(found["server-metrics"].figures) == ["vllm:num_requests_running"]


def test_timeline_counts_tokens_and_requests():
    (trace,) = [t for t in plots([(spec(num_requests=10), requests(10))])["timeline"].figure["data"]
                if t["name"] == "output tokens/s"]
    assert math.fsum(trace["y"]) * trace["dx"] == pytest.approx(40, rel=1e-3)


def test_timeline_shows_first_tokens_where_their_requests_were_sent():
    records = [later(request(first_content_us=10_000 if i < 5 else 30_000), 17_001 * i, index=i) for i in range(10)]
    by_name = {t["name"]: t for t in plots([(spec(num_requests=10), records)])["timeline"].figure["data"]}
    median = by_name["first token: median"]
    assert [y for x, y in zip(median["x"], median["y"]) if x < 0.08] == [10.0] * 5
    assert by_name["first token: slowest"]["y"][-1] == 30.0


def test_counters_are_shown_as_rates():
    watched = [Series(source="server", name="tokens_total", unit="", at_us=[0, 2_000_000, 3_000_000],
                      values=[0.0, 100.0, 110.0])]
    (trace,) = plots([(spec(), [request()])], series=watched)["server-metrics"].figure["data"]
    assert (trace["x"], trace["y"]) == ([2.0, 3.0], [50.0, 10.0])


def test_large_results_stay_small():
    cells = [(spec(concurrency=c, num_requests=3000), requests(3000)) for c in (1, 2)]
    size = len(msgspec.json.encode({p.id: p.figures for p in make_plots(result(cells))}))
    assert size < 100_000


def test_limits_of_known_hardware_are_drawn():
    model = ModelConfig(architecture="LlamaForCausalLM", vocab_size=1000, hidden_size=64, intermediate_size=128,
                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=2048)
    hardware = HardwareFacts(gpu="H200", model=msgspec.to_builtins(model), source="options")
    found = plots([(spec(concurrency=c, num_requests=20), requests(20)) for c in (1, 2)],
                  analysis=Analysis(hardware=hardware))
    (limit,) = [t for t in found["pareto"].figure["data"] if t["meta"].get("is_soft")]
    assert limit["y"][0] == pytest.approx(limit["x"][0], rel=1e-4)  # a batch of one


def test_search_and_goodput():
    cells = [(spec(concurrency=c, num_requests=20), requests(20)) for c in (1, 2)]
    steps = [SearchStep(level=1.0, cell="c1-p16-o4", passed=True, reason="within"),
             SearchStep(level=2.0, cell="c2-p16-o4", passed=False, reason="too slow")]
    found = plots(cells, kind="search", search=SearchResult(
        variable="concurrency", criterion="all within", steps=steps, best=1.0, least_failed=2.0, is_settled=False))
    assert next(iter(found)) == "search"
    assert [(t["name"], t["x"]) for t in found["search"].figure["data"]] == [
        ("passed", [1.0]), ("did not", [2.0]), ("found", [1.0, 1.0])]
    assert "not come to its end" in found["search"].caption
    assert "goodput" not in found
