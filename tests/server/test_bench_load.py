"""Loads from end to end, against the calibration server."""

import itertools
import json
import statistics
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread

from pelton.bench import command
from pelton.bench.agenda import FixedAgenda
from pelton.bench.audit import audit
from pelton.bench.calibration import Behaviour
from pelton.bench.files import read_result
from pelton.bench.options import ServeOptions, SweepOptions
from pelton.bench.progress import Progress
from pelton.bench.results import ClientError
from pelton.bench.run import Run, execute
from pelton.bench.serve import run_serve
from pelton.bench.summary import recompute
from pelton.bench.sweep import run_sweep, sweep_specs
from pelton.errors import ConfigError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)


def sweep(folder, *, behaviour=(), **options):
    """A sweep of one cell; returns its cell, measured records and the server."""
    sizes = {} if "trace" in options else {"prompt_tokens": (20,), "output_tokens": (6,)}
    fields = {**sizes, "num_warmup": 2, "output_dir": str(folder), "request_timeout": 20.0, "seed": 11,
              "calibrate": False, **UNWATCHED, **options}
    with serve_in_thread(Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT, **dict(behaviour))) as server:
        assert run_sweep(SweepOptions(url=server.url, **fields)) == 0
    result = read_result(folder / "results.json")
    (cell,) = result.cells
    return cell, [r for r in result.requests if not r.is_warmup], server


@pytest.mark.parametrize("load", [{"request_rate": (200.0,)}, {"request_rate": (200.0,), "arrivals": "constant"},
                                  {"request_rate": (200.0,), "burstiness": 0.5}, {"stages": "100:0.05,100-300:0.05"}])
def test_open_loops_keep_their_scheduled_times(tmp_path, load):
    count = {} if "stages" in load else {"num_requests": 12}
    cell, records, _ = sweep(tmp_path, behaviour={"ttft_s": 0.05}.items(), **load, **count)
    assert cell.concurrency is None
    assert cell.status == "complete"
    assert all(r.is_ok and r.sent_us >= r.scheduled_us for r in records)
    scheduled = [r.scheduled_us for r in records]
    assert scheduled == sorted(scheduled)
    if load.get("arrivals") == "constant":
        assert {b - a for a, b in itertools.pairwise(scheduled)} <= {4999, 5000, 5001}
    if "stages" in load:
        assert {r.stage for r in records} <= {s.name for s in cell.load.stages}
    else:
        assert len(records) == 12
    assert cell.peak_in_flight > 1


def test_stages_of_requests_in_flight_reach_their_levels(tmp_path):
    cell, records, server = sweep(tmp_path, behaviour={"ttft_s": 0.005}.items(), stages="c2:8req,c5:15req,c1:4req")
    assert [(s.name, s.num_done, s.peak_in_flight) for s in cell.stages[:2]] == [("1: 2 in flight", 8, 2),
                                                                               ("2: 5 in flight", 15, 5)]
    assert (len(records), cell.status, server.peak_in_flight) == (27, "complete", 5)
    assert [r.stage for r in records] == sorted(r.stage for r in records)
    assert (tmp_path / "stages.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("is_slow", [False, True])
def test_what_is_kept_after_each_trial_is_what_all_requests_say(tmp_path, monkeypatch, is_slow):
    """Cells are computed as they end; one that takes long to keep waits for its turn."""
    monkeypatch.setattr("pelton.bench.run.QUICK_KEEP_S", -1.0 if is_slow else 60.0)
    monkeypatch.setattr("pelton.bench.run.MAX_KEEP_SHARE", 1e-6)
    kept = []
    with serve_in_thread(Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT)) as server:
        options = SweepOptions(url=server.url, concurrency=(1, 2), prompt_tokens=(20,), output_tokens=(6,),
                               num_trials=2, num_requests=3, calibrate=False, output_dir=str(tmp_path), **UNWATCHED)
        last = execute(Run("sweep", options, FixedAgenda(sweep_specs(options), num_trials=2),
                           progress=Progress(is_silent=True), keep=kept.append))
    assert [sum(c.num_trials for c in made.cells) for made in kept] == ([1] if is_slow else [1, 2, 3])
    for made in [*kept, last]:
        assert recompute(made) == made
        assert audit(made) == made.findings
    assert (last.status, {made.status for made in kept}) == ("complete", {"partial"})


def test_a_full_server_shows_in_latency_from_the_scheduled_time(tmp_path):
    cell, records, server = sweep(tmp_path, behaviour={"ttft_s": 0.02}.items(), request_rate=(1000.0,),
                                  num_requests=10, max_in_flight=1, num_warmup=0)
    assert server.peak_in_flight == 1
    assert cell.num_held >= 8
    assert "requests_held" in {f.name for f in read_result(tmp_path / "results.json").findings}
    assert records[-1].sent_us - records[-1].scheduled_us > 100_000
    assert statistics.median(r.latency_us for r in records) < 100_000


def test_cancelled_requests_are_told_from_errors(tmp_path):
    cell, records, server = sweep(tmp_path, behaviour={"itl_s": 0.002}.items(), concurrency=(4,), num_requests=40,
                                  output_tokens=(30,), cancellation_rate=0.5)
    cancelled = [r for r in records if r.was_cancelled]
    assert 5 <= len(cancelled) == cell.num_cancelled <= 35
    assert cell.errors == {}
    assert all(r.error is None and len(r.content_us) <= 30 for r in cancelled)  # on a busy machine many come at once
    assert min(len(r.content_us) for r in cancelled) < 30
    assert all(len(r.content_us) == 30 for r in records if not r.was_cancelled)
    assert cell.distribution("e2e_latency").num_samples == 40 - len(cancelled)
    assert server.num_in_flight == 0


def test_whole_answers_are_cancelled_by_time(tmp_path):
    """The server keeps every answer back, so that only the client can end a request."""
    with serve_in_thread(Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT,
                                   fault=lambda number, body: "hang" if body["max_tokens"] == 3 else None)) as server:
        options = ServeOptions(url=server.url, concurrency=(3,), prompt_tokens=20, output_tokens=3, num_requests=6,
                               num_warmup=0, cancellation_rate=1.0, cancellation_delay=0.01, calibrate=False,
                               output_dir=str(tmp_path))
        assert run_serve(options) == 0
    result = read_result(tmp_path / "results.json")
    assert [(c.is_stream, c.num_cancelled, c.errors) for c in result.cells] == [(False, 6, {}), (True, 6, {})]


def test_time_instead_of_a_number_of_requests(tmp_path):
    cell, records, _ = sweep(tmp_path, behaviour={"ttft_s": 0.01}.items(), concurrency=(3,),
                             measurement_duration=0.15)
    assert cell.num_requests is None
    assert cell.status == "complete"
    assert max(r.sent_us for r in records) - min(r.sent_us for r in records) < 150_000
    assert len(records) > 3


def test_trials_are_pooled_and_none_repeats_a_prompt(tmp_path):
    cell, records, server = sweep(tmp_path, concurrency=(2,), num_requests=5, num_trials=3)
    assert (cell.num_trials, cell.num_requests, cell.num_done, cell.status) == (3, 15, 15, "complete")
    assert [(r.trial, r.index) for r in records] == [(t, i) for t in range(3) for i in range(5)]
    contents = [body["messages"][0]["content"] for body in server.bodies]
    assert len({text.split()[0] for text in contents}) == len(contents)


def test_trace_is_sent_again_with_its_sizes(tmp_path):
    trace = [{"timestamp": 100 * i, "input_length": 20 + 3 * i, "output_length": 2 + i, "hash_ids": [i]}
             for i in range(5)]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, trace)))
    cell, records, _ = sweep(tmp_path, trace=str(path), trace_speed_up=10.0, num_warmup=None)
    assert not cell.has_fixed_sizes
    assert [(r.server_prompt_tokens, r.output_tokens) for r in records] == [(20 + 3 * i, 2 + i) for i in range(5)]
    assert [round((r.scheduled_us - records[0].scheduled_us) / 1e3) for r in records] == [0, 10, 20, 30, 40]


def test_requests_of_a_trace_without_output_ask_for_a_token_and_are_told(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,20,0\n2023-11-16 18:15:46.1,22,3\n")
    _, records, _ = sweep(tmp_path, trace=str(path), num_warmup=None)
    assert [r.output_tokens for r in records] == [1, 3]
    told = "1 request of the trace recorded no output and asked for 1 token"
    assert read_result(tmp_path / "results.json").workload.prompts.endswith(f"; {told}")
    assert told in capsys.readouterr().err.splitlines()


def test_blocks_of_a_trace_and_the_words_of_a_file_are_not_both_sent(tmp_path):
    (tmp_path / "text").write_text("Some words of a text.")
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 20, "output_length": 3, "hash_ids": [1]}')
    with pytest.raises(ConfigError, match=r"^trace must be without hash_ids"):
        sweep(tmp_path, trace=str(path), prompt_text=str(tmp_path / "text"))


def test_trace_with_prompts_below_the_floor_is_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 3}')
    with pytest.raises(ConfigError, match="prompt_tokens 1 is below the floor"):
        sweep(tmp_path, trace=str(path))


def test_clients_own_error_is_kept_with_the_cell(tmp_path, monkeypatch):
    asked = []

    def known(levels):
        asked.extend(levels)
        return [ClientError(concurrency=8, num_events=9, ttft_p50_us=1.0, ttft_p99_us=2.0, event_p50_us=3.0,
                            event_p99_us=4.0, itl_p50_us=5.0, itl_p99_us=6.0)]

    monkeypatch.setattr(command, "client_errors", known)
    cell, _, _ = sweep(tmp_path, concurrency=(3,), num_requests=6, calibrate=True)
    assert asked == [8]
    assert cell.client.calibration.event_p99_us == 4.0


def test_client_is_watched(tmp_path):
    cell, _, _ = sweep(tmp_path, behaviour={"ttft_s": 0.03}.items(), concurrency=(2,), num_requests=6)
    assert cell.client.num_workers == 1
    assert cell.client.cpu_share[0] >= 0
    assert cell.client.loop_lag_p99_us >= 0
