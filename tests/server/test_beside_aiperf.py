"""The comparison with aiperf: what is a client's doing and what the server's; its servers, asked by pelton bench."""

import json
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import beside_aiperf

    yield beside_aiperf
    for name in ("beside_aiperf", "client_rate", "common", "cores"):
        sys.modules.pop(name, None)


def figures(beside, scale, server_scale, *, ttft=100.0):
    """Of a client that reads `scale` times what a server that is `server_scale` times as slow gives."""
    seen = {"ttft_p50_ms": ttft, "ttft_mean_ms": ttft, "itl_mean_ms": 10.0}
    over = dict.fromkeys(("ttft_mean_ms", "itl_mean_ms"), scale - 1) | {"output_tokens_per_s": 1 / scale - 1}
    shown = {name: value * scale * server_scale for name, value in seen.items()}
    kept = {name: seen[name] * server_scale for name in ("ttft_mean_ms", "itl_mean_ms")}
    rate = 11 / (ttft + 100.0) * 1e3  # of answers of 11 tokens, one after another
    return shown | {"output_tokens_per_s": rate / scale / server_scale, "over_server": over, "server": kept}


@pytest.fixture
def load(beside, tmp_path):
    return beside.Load(tmp_path, [11] * 4, 256, 1)


@pytest.mark.parametrize(("scale", "server_scale", "plain", "by_server"), [
    (1.01, 1.0, True, True), (1.0, 1.3, False, True), (1.1, 1.0, False, False), (1.1, 1 / 1.1, True, False)])
def test_the_server_tells_whose_doing_a_difference_is(beside, load, scale, server_scale, plain, by_server):
    known = {name: figures(beside, 1.0, 1.0) for name in ("pelton_bench", "aiperf")}
    seen = {"pelton_bench": figures(beside, 1.0, 1.0), "aiperf": figures(beside, scale, server_scale)}
    found = beside.compare([seen, seen], [known, known], load)
    assert all(found["agrees"].values()) == plain
    assert all(found["agrees_by_server"].values()) == by_server


def test_as_much_is_allowed_as_aiperf_errs_on_the_calibration_server(beside, load):
    exact = figures(beside, 1.0, 1.0)
    known = {"pelton_bench": exact, "aiperf": {**exact, "ttft_mean_ms": 108.0}}
    seen = {"pelton_bench": exact, "aiperf": {**exact, "ttft_mean_ms": 107.0, "itl_mean_ms": 10.7}}
    found = beside.compare([seen], [known], load)
    assert found["allowed"] == pytest.approx(
        {"ttft_p50_ms": 0.03, "ttft_mean_ms": 0.08, "itl_mean_ms": 0.03, "output_tokens_per_s": 0.03})
    assert found["agrees"] == {
        "ttft_p50_ms": True, "ttft_mean_ms": True, "itl_mean_ms": False, "output_tokens_per_s": True}
    told = beside.verdict({"concurrency": 1, "num_requests": 4, **found}).splitlines()
    assert [line.split()[0] for line in told if "DIFFERS" in line] == ["itl_mean_ms"]


def test_an_error_is_beyond_what_the_calibration_server_kept(beside, load):
    """A server that was late itself is none of the client's doing."""
    assert beside.own_error(figures(beside, 1.05, 1.2), load) == {
        "ttft_p50_ms": 0.05, "ttft_mean_ms": 0.05, "itl_mean_ms": 0.05, "output_tokens_per_s": -0.0476}


def test_both_clients_find_prompts_of_one_size_and_the_same_lengths(beside, tmp_path):
    load = beside.make_load(tmp_path / "load.jsonl", 20, 100, 8)
    lines = [json.loads(line) for line in load.file.read_text().splitlines()]
    tokenizer = beside.Tokenizer.from_dir(beside.TOKENIZER)
    assert {len(tokenizer.encode(line["text"])) for line in lines} == {100}
    assert [line["output_length"] for line in lines] == load.lengths == [x["extra"]["min_tokens"] for x in lines]
    assert set(load.lengths) == set(beside.NUM_OUT)


def test_true_throughput_of_slots_that_are_never_idle(beside, tmp_path):
    load = beside.Load(tmp_path, [3, 2, 1, 2], 256, 2)
    found = beside.true_figures(1000.0, 500.0, load)
    assert found["output_tokens_per_s"] == pytest.approx(8 / 3.5)
    # slots: 3 tokens (2 s), 2 tokens (1.5 s); 1 (2.5 s), 2 (3.5 s)
    found = beside.true_figures(1000.0, 500.0, beside.Load(tmp_path, [3, 2, 1, 2], 256, 2, ramp_s=1.0))
    assert found["output_tokens_per_s"] == pytest.approx(8 / 4.0)
    # the second begins a second later: 2 s, 2.5 s; 3 s, 4 s


def test_a_client_that_was_answered_other_work_ends_the_run(beside, tmp_path):
    answers = [beside.Answer(1.0, 2.0, 16)] * 3
    with pytest.raises(SystemExit, match=r"3 answers of 16\.0 tokens"):
        beside.check_work("a client", answers, 256, beside.Load(tmp_path, [16, 16, 17], 256, 1))


def test_cores(beside):
    import cores

    allowed = sorted(os.sched_getaffinity(0))
    assert cores.parse_cores(None) == set(allowed)
    with pytest.raises(ValueError, match="not among"):
        cores.parse_cores(f"{allowed[-1] + 1}-{allowed[-1] + 2}")
    with cores.on_cores(cores.parse_cores(str(allowed[0]))):
        assert os.sched_getaffinity(0) == {allowed[0]}
    assert sorted(os.sched_getaffinity(0)) == allowed


def test_a_servers_own_figures_are_of_the_clients_requests(beside, tmp_path):
    load = beside.make_load(tmp_path / "load.jsonl", 6, 256, 2)
    cores = frozenset(os.sched_getaffinity(0))
    with beside.serving([f"{BENCHMARKS}/timed_server.py", "--step-ms", "1", "--token-us", "1", "--served-model-name",
                         beside.MODEL], cores) as url:
        found = beside.Side("pelton", url, cores).ask({"pelton_bench": beside.ask_pelton}, load, 0)["pelton_bench"]
        told = beside.told_by_server(url)
    assert set(found["over_server"]) == {"ttft_mean_ms", "itl_mean_ms", "output_tokens_per_s"}
    assert told.num_first > len(load.lengths)  # probes as well
    assert told.means[0] >= 1.0  # no step takes less


def test_the_calibration_server_counts_prompts_and_tells_the_times_it_kept(beside, tmp_path):
    load = beside.make_load(tmp_path / "load.jsonl", 4, 256, 2)
    cores = frozenset(os.sched_getaffinity(0))
    with beside.serving(beside.known_server(0.02, 0.001, load), cores) as url:
        found = beside.Side("calibration", url, cores).ask({"pelton_bench": beside.ask_pelton}, load, 0)["pelton_bench"]
        told = beside.told_by_server(url)
    assert set(found["over_server"]) == {"ttft_mean_ms", "itl_mean_ms", "output_tokens_per_s"}
    assert found["ttft_mean_ms"] >= 20.0
    # All that it was asked, probes too, since those of another moment are taken off what it told of the load alone.
    assert told.means[0] >= 20.0
    # What comes late leaves less until the next: together no request is shorter than it was asked to be.
    assert told.ttft_ms + told.gaps_ms >= 0.999 * (20.0 * told.num_first + 1.0 * told.num_gaps)


def test_a_model_of_a_shape_gets_the_vocabulary_that_clients_have(beside, tmp_path):
    args = beside.argparse.Namespace(timed=False, shape="llama-3.1-8b", concurrency=[1, 32], input_len=2000,
                                     serve_options="--device cuda")
    command = beside.pelton_server(args, tmp_path)
    assert command[command.index("--max-batch-size") + 1] == "32"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == beside.Tokenizer.from_dir(tmp_path).vocab_size < 10_000
    assert config["num_hidden_layers"] == 32
