"""The HTTP benchmark from end to end, against the calibration server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.bench import prompt_counter
from helpers.calibrated import serve_in_thread
from helpers.tokenizers import write_tokenizer

from pelton.bench import command, service
from pelton.bench.budget import Budget
from pelton.bench.calibration import Behaviour
from pelton.bench.client import now_ns
from pelton.bench.files import read_result, write_result
from pelton.bench.options import ServeOptions, SweepOptions
from pelton.bench.serve import run_serve
from pelton.bench.sweep import run_sweep
from pelton.cli import main
from pelton.errors import ConfigError, ServerError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)
OUTPUT_TOKENS = 5


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@contextmanager
def server(**behaviour):
    with serve_in_thread(Behaviour(**{"model": "tiny", "root": str(TINY), "count_prompt": COUNT, **behaviour})) as made:
        yield made


def sweep(made, folder, **options):
    """Runs a small sweep; returns (exit status, result)."""
    fields = {"concurrency": (1, 3), "prompt_tokens": (12, 40), "output_tokens": (OUTPUT_TOKENS,), "num_requests": 6,
              "num_warmup": 1, "output_dir": str(folder), "request_timeout": 20.0, "calibrate": False, **options}
    status = run_sweep(SweepOptions(url=made.url, **fields))
    return status, read_result(folder / "results.json")


def measured(body):
    """Whether a request belongs to the load: probes ask for fewer tokens."""
    return body["max_tokens"] == OUTPUT_TOKENS


def names(result):
    return {f.name for f in result.findings}


def test_sweep_measures_what_the_server_did(tmp_path, capsys):
    with server(ttft_s=0.01, itl_s=0.001) as made:
        status, result = sweep(made, tmp_path)
    assert status == 0
    assert (result.status, result.kind) == ("complete", "sweep")
    assert [c.id for c in result.cells] == ["c1-p12-o5", "c3-p12-o5", "c1-p40-o5", "c3-p40-o5"]
    for cell in result.cells:
        assert cell.num_done == 6
        assert cell.peak_in_flight == cell.concurrency
        assert cell.distribution("ttft").min >= 10
        assert cell.distribution("decode_time").num_samples == 6
        assert cell.distribution("itl").num_samples == 6 * (OUTPUT_TOKENS - 1)
        assert cell.distribution("prompt_tokens").min == cell.requested_prompt_tokens
        assert cell.distribution("prompt_tokens").max == cell.requested_prompt_tokens
        assert cell.distribution("output_tokens").max == OUTPUT_TOKENS
    assert not names(result) & {"prompt_tokens_disagree", "usage_missing", "output_lengths_differ", "requests_failed"}
    assert sorted(os.listdir(tmp_path)) == ["cells.csv", "report.html", "requests.csv", "results.json"]
    assert "Streaming" in capsys.readouterr().out


def test_requests_are_unlike_and_fixed_in_length(tmp_path):
    with server() as made:
        sweep(made, tmp_path)
    bodies = [body for body in made.bodies if measured(body)]
    assert len(bodies) == 4 * 7
    contents = [body["messages"][0]["content"] for body in bodies]
    assert len({text.split()[0] for text in contents}) == len(contents)
    assert all(body["ignore_eos"] and body["min_tokens"] == OUTPUT_TOKENS and body["stream"] for body in bodies)


def test_no_more_in_flight_than_asked_for(tmp_path):
    with server(ttft_s=0.002) as made:
        sweep(made, tmp_path, concurrency=(3,))
    assert made.peak_in_flight == 3


def test_serve_prints_both_tables_and_keeps_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with server() as made:
        options = ServeOptions(url=made.url, concurrency=(1, 2), prompt_tokens=20, output_tokens=3, num_requests=4,
                               calibrate=False)
        assert run_serve(options) == 0
    printed = capsys.readouterr().out
    assert "Whole answers, no streaming" in printed
    assert "Streaming" in printed
    assert os.listdir(tmp_path) == []


def test_json_is_one_object_and_nothing_else(capsys):
    with server() as made:
        run_serve(ServeOptions(url=made.url, concurrency=(2,), prompt_tokens=20, output_tokens=3, num_requests=4,
                               json=True, calibrate=False))
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == ""
    assert [c["is_stream"] for c in data["cells"]] == [False, True]
    assert (data["target"]["protocol"], data["workload"]["prompt_tokens"]) == ("openai", ["20"])
    assert len(data["workload_hash"]) == 16
    assert data["cells"][0]["metrics"]["ttft"]["withheld"] == "the answers were not streamed"


@pytest.mark.parametrize("token_ids", [False, True])
def test_completions_route(tmp_path, token_ids):
    with server() as made:
        _, result = sweep(made, tmp_path, endpoint="completions", token_ids=token_ids, prompt_tokens=(3, 40))
    assert {c.distribution("prompt_tokens").p50 for c in result.cells} == {3, 40}
    assert all(isinstance(body["prompt"], list) == token_ids for body in made.bodies)


@pytest.mark.parametrize(("refused", "control"), [({"min_tokens"}, "ignore_eos"), ({"ignore_eos"}, "max_tokens")])
def test_plain_openai_servers_get_plain_requests(tmp_path, refused, control):
    with server(refused_fields=frozenset({*refused, "stream_options"}), num_output=lambda body: 3) as made:
        _, result = sweep(made, tmp_path)
    assert result.target.output_control == control
    assert not result.target.reports_stream_usage
    assert {"output_control_refused", "output_lengths_differ", "usage_missing"} <= names(result)
    assert {r.output_tokens_source for r in result.requests} == {"client"}


def test_open_ended_output_is_asked_for_and_said(tmp_path):
    with server() as made:
        _, result = sweep(made, tmp_path, fixed_output=False)
    assert result.target.output_control == "max_tokens"
    assert "output_control_refused" not in names(result)
    assert not any("ignore_eos" in body for body in made.bodies)


def test_constant_difference_of_templates_is_corrected(tmp_path):
    with server(count_prompt=prompt_counter(TINY, extra=3)) as made:
        _, result = sweep(made, tmp_path)
    assert result.target.frame_correction_tokens == 3
    assert {c.distribution("prompt_tokens").p50 for c in result.cells} == {12, 40}
    assert "template_corrected" in names(result)
    assert "prompt_tokens_disagree" not in names(result)


def test_counts_that_go_wrong_during_the_run_are_reported_and_used(tmp_path):
    with server(count_prompt=lambda body: COUNT(body) + 2 * measured(body)) as made:
        _, result = sweep(made, tmp_path)
    assert {c.distribution("prompt_tokens").p50 for c in result.cells} == {14, 42}
    assert "prompt_tokens_disagree" in names(result)


def test_another_models_tokenizer_is_refused(tmp_path):
    other = write_tokenizer(tmp_path / "other")
    with server() as made, pytest.raises(ConfigError, match="does not match the served model"):
        sweep(made, tmp_path, tokenizer=str(other))
    assert not any(measured(body) for body in made.bodies)


def test_tokenizer_by_name_and_by_directory(tmp_path):
    with server(root=None) as made:
        with pytest.raises(ConfigError, match="tokenizer of model 'tiny' is not known here"):
            sweep(made, tmp_path)
        with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
            sweep(made, tmp_path, tokenizer=str(tmp_path))
        for tokenizer in ("pelton-tiny", str(TINY)):
            assert sweep(made, tmp_path, tokenizer=tokenizer)[0] == 0


def test_tokenizer_without_a_template_cannot_size_chats(tmp_path):
    bare = write_tokenizer(tmp_path / "bare", template=None)
    with server() as made, pytest.raises(ConfigError, match="has no chat template"):
        sweep(made, tmp_path, tokenizer=str(bare))


def test_size_below_the_floor_is_refused_before_anything_is_measured(tmp_path):
    with server() as made, pytest.raises(ConfigError, match=r"prompt_tokens 2 is below the floor of 5"):
        sweep(made, tmp_path, prompt_tokens=(40, 2))
    assert not any(measured(body) for body in made.bodies)


def test_fewer_requests_than_slots_are_not_made_more(tmp_path):
    with server(ttft_s=0.005) as made:
        _, result = sweep(made, tmp_path, concurrency=(8,), num_requests=4, prompt_tokens=(40,))
    (cell,) = result.cells
    assert (cell.num_done, cell.peak_in_flight) == (4, 4)
    assert cell.value("in_flight_input_tokens") <= 4 * 40
    assert "concurrency_not_reached" in names(result)


def test_cached_tokens_are_noticed(tmp_path):
    with server(cached_tokens=36) as made:
        _, result = sweep(made, tmp_path)
    assert "prompts_cached" in names(result)


def test_chunks_of_several_tokens_are_noticed(tmp_path):
    with server(tokens_per_chunk=2) as made:
        _, result = sweep(made, tmp_path)
    assert "chunks_are_not_tokens" in names(result)
    assert all(c.distribution("itl") is None for c in result.cells)
    assert all(1.5 < r.first_text_tokens <= r.output_tokens for r in result.requests)


def test_key_is_sent_and_not_kept(tmp_path):
    with server(api_key="sesame") as made:
        with pytest.raises(ServerError, match="give api_key"):
            sweep(made, tmp_path)
        assert sweep(made, tmp_path, api_key="sesame")[0] == 0
    assert "sesame" not in (tmp_path / "results.json").read_text()
    assert "sesame" not in (tmp_path / "report.html").read_text()


def test_connections_the_server_closes_are_opened_again(tmp_path):
    with server(closes_connections=True) as made:
        _, result = sweep(made, tmp_path)
    assert [c.errors for c in result.cells] == [{}] * 4


@pytest.mark.parametrize("fault", ["status_500", "drop_mid_stream", "malformed", "stream_error", "no_finish"])
def test_single_failures_are_counted_by_kind(tmp_path, fault):
    kind = {"status_500": "http_500", "drop_mid_stream": "dropped", "no_finish": "dropped"}
    with server(fault=lambda number, body: fault if measured(body) and number % 5 == 0 else None) as made:
        status, result = sweep(made, tmp_path)
    failed = [r for r in result.requests if r.error is not None]
    assert status == 0
    assert failed
    assert {r.error for r in failed} == {kind.get(fault, fault)}
    assert "requests_failed" in names(result)
    assert sum(c.value("errors") for c in result.cells) == sum(not r.is_warmup for r in failed)


def test_a_dropped_request_is_sent_once_more_and_told(tmp_path):
    with server(fault=lambda number, body: "drop" if measured(body) and number % 5 == 0 else None) as made:
        _, result = sweep(made, tmp_path, concurrency=(1,))
    assert {r.error for r in result.requests} == {None}
    assert any(r.was_resent for r in result.requests)
    assert "requests_resent" in names(result)


@pytest.mark.parametrize(("fault", "line"), [
    ("status_500", r"the server failed in cell c1-p40-o5: http_500 \(status 500: out of order\)"),
    ("hang", r"the server failed in cell c1-p40-o5: timeout \(no full answer within 1 s\)"),
    ("hang_mid_stream", r"the server failed in cell c1-p40-o5: timeout \(no full answer within 1 s\)"),
    ("drop", r"the server failed in cell c1-p40-o5: dropped")])
def test_server_that_fails_ends_the_run_and_keeps_the_rest(tmp_path, fault, line):
    def break_later(number, body):
        return fault if measured(body) and COUNT(body) == 40 else None

    with server(fault=break_later) as made, pytest.raises(ServerError, match=line) as caught:
        sweep(made, tmp_path, request_timeout=1.0)
    assert f"kept in {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)
    result = read_result(tmp_path / "results.json")
    assert result.status == "partial"
    assert [c.status for c in result.cells][:2] == ["complete", "complete"]
    assert result.skipped_cells == ["c3-p40-o5"]
    assert {len(r.content_us) for r in result.requests if r.error} == {2 if fault == "hang_mid_stream" else 0}
    assert "Partial result" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("num_requests", "num_trials", "reason"), [
    (3, 1, r"every request failed \(http_500"), (6, 1, "4 requests in a row failed"),
    (6, 2, "4 requests in a row failed")])
def test_a_server_that_fails_in_the_last_cell_leaves_a_partial_result(tmp_path, num_requests, num_trials, reason):
    """All requests of the last trial are sent and answered, badly; no cell is left out."""
    sent = []

    def break_at_last(number, body):
        if measured(body):
            sent.append(body)
        return "status_500" if len(sent) > 2 * (num_requests + 1) * num_trials - min(num_requests, 4) else None

    with server(fault=break_at_last) as made, pytest.raises(ServerError, match="the server failed in cell c1-p40-o5"):
        sweep(made, tmp_path, concurrency=(1,), num_requests=num_requests, num_trials=num_trials)
    result = read_result(tmp_path / "results.json")
    assert (result.status, result.skipped_cells) == ("partial", [])
    assert re.match(reason, result.cells[-1].stop_reason)
    assert [(c.num_done, c.status) for c in result.cells] == [(num_requests * num_trials, status)
                                                              for status in ("complete", "partial")]


def test_sizes_the_server_refuses_do_not_end_the_run(tmp_path):
    def refuse_long(number, body):
        return "status_400" if COUNT(body) == 40 and measured(body) else None

    with server(fault=refuse_long) as made, pytest.raises(ServerError, match="every request failed in cell c1-p40-o5"):
        sweep(made, tmp_path, prompt_tokens=(12, 40, 60))
    result = read_result(tmp_path / "results.json")
    assert [c.requested_prompt_tokens for c in result.cells if c.errors] == [40, 40]
    assert result.skipped_cells == []


@pytest.mark.parametrize(("fault", "line"), [
    ("status_500", "http_500"), ("hang", "hung: no full answer within 0.2 s"), ("malformed", "malformed"),
    ("drop", "dropped"), ("status_400", "http_400")])
def test_server_that_never_works_is_one_line(tmp_path, fault, line):
    with server(fault=lambda number, body: fault) as made, pytest.raises(ServerError, match=line):
        sweep(made, tmp_path, request_timeout=0.2)


def test_budget_cuts_cells_and_says_so(tmp_path):
    with server(ttft_s=0.02) as made:
        status, result = sweep(made, tmp_path, duration_budget=0.02, num_requests=50)
    assert status == 0
    assert result.status == "partial"
    assert result.cells[0].stop_reason == "the time budget was spent"
    assert {"cells_cut_short", "cells_skipped"} <= names(result)
    assert len(result.cells) + len(result.skipped_cells) == 4


@pytest.mark.parametrize("num_trials", [1, 2])
def test_a_cut_trial_is_measured_again_in_the_time_that_others_left(tmp_path, monkeypatch, num_trials):
    """The first trial is cut by a deadline as early as a bad estimate may set it."""
    deadlines = []

    def deadline_ns(budget, remaining):
        deadlines.append(now_ns() if not deadlines else budget.end_ns)
        return deadlines[-1]

    monkeypatch.setattr(Budget, "deadline_ns", deadline_ns)
    with server() as made:
        status, result = sweep(made, tmp_path, duration_budget=60.0, num_trials=num_trials)
        prompts = [body["messages"][-1]["content"] for body in made.bodies if measured(body)]
    assert status == 0
    assert (result.status, [c.num_done for c in result.cells]) == ("complete", [6 * num_trials] * 4)
    assert len(result.requests) == 4 * 7 * num_trials
    assert len({(r.cell, r.trial, r.index, r.is_warmup) for r in result.requests}) == len(result.requests)
    assert len(prompts) == len(result.requests) + 1  # one measured request of the cut trial is not in the result
    assert len(set(prompts)) == len(prompts)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nobody_listens(host):
    with pytest.raises(ServerError, match=f"cannot reach http://{host}:[0-9]+: connection refused"):
        run_serve(ServeOptions(url=f"{host}:{free_port()}", calibrate=False))


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "http://u:p@x", "http://x?y=1", "http://a b"])
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigError, match="url must"):
        run_serve(ServeOptions(url=url, calibrate=False))


@contextmanager
def raw_server(answer):
    """Accepts connections, reads once and sends `answer`; sends nothing and waits when it is None."""
    listener = socket.create_server(("127.0.0.1", 0))
    held = []

    def work():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(65536)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in held:
            connection.close()


@pytest.mark.parametrize(("answer", "line"), [
    (None, "accepted /models and then hung"), (b"220 mail ready\r\n", "not a valid HTTP/1.1 response"),
    (b"", "dropped"),
    (b"HTTP/1.1 200 OK\r\n\r\n<html>", "something else than a list of models"),
    (b'HTTP/1.1 200 OK\r\n\r\n{"data": [1]}', "something else than a list of models"),
    (b"HTTP/1.1 502 X\r\nContent-Length: 3\r\n\r\nbad", "http_502"),
    (b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", "lists no models; give model"),
    (b'HTTP/1.1 200 OK\r\n\r\n{"data": [{"id": "a"}, {"id": "b"}]}', "serves 2 models; give model, one of: a, b")])
def test_listeners_that_are_no_server(answer, line, monkeypatch):
    monkeypatch.setattr(service, "LOOK_UP_TIMEOUT_S", 0.2 if answer is None else 10.0)
    with raw_server(answer) as url, pytest.raises((ServerError, ConfigError), match=line):
        run_serve(ServeOptions(url=url, calibrate=False))


def test_model_that_is_not_served():
    with server() as made, pytest.raises(ConfigError, match=r"model 'other' is not served at .*; it serves: tiny"):
        run_serve(ServeOptions(url=made.url, model="other", calibrate=False))


def test_unwritable_output_dir_is_found_before_anything_is_asked(tmp_path):
    (tmp_path / "file").touch()
    with server() as made, pytest.raises(ConfigError, match=r"output_dir .* cannot be written"):
        sweep(made, tmp_path / "file")
    assert made.num_requests == 0


def test_a_disk_that_fills_up_costs_the_files_and_not_the_figures(tmp_path, monkeypatch, capsys):
    """The first cell can be kept; from then on there is no room, and the run goes on all the same."""
    kept = []

    def write(result, directory):
        kept.append(len(result.cells))
        if len(kept) > 1:
            raise ConfigError(f"cannot write {directory / 'results.json'}: No space left on device")
        write_result(result, directory)

    monkeypatch.setattr(command, "write_result", write)
    where = f"; what was measured before is kept in {tmp_path / 'results.json'}"
    with server() as made, pytest.raises(ConfigError, match=f"No space left on device{re.escape(where)}$"):
        sweep(made, tmp_path, concurrency=(1,), prompt_tokens=(12, 40, 60))
    assert kept == [1, 2, 3]
    out, err = capsys.readouterr()
    assert err.count("not kept so far: cannot write") == 1
    assert re.search(r"60 +5 +\d", out)
    assert "results.json" not in out
    result = read_result(tmp_path / "results.json")
    assert (result.status, result.stop_reason, len(result.cells)) == ("partial", "not ended yet", 1)


@pytest.mark.parametrize(("stream", "options", "status"), [("stdout", (), 1), ("stdout", ("--json",), 1),
                                                           ("stderr", (), 0)])
def test_a_full_disk_behind_the_terminal_costs_no_measurement(tmp_path, monkeypatch, capsys, stream, options, status):
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(sys, stream, full)
    with server() as made:
        assert main(["bench", "sweep", made.url, "--concurrency", "1", "--prompt-tokens", "12", "--output-tokens", "3",
                     "--num-requests", "3", "--no-calibrate", "--output-dir", str(tmp_path), *options]) == status
    with suppress(OSError):  # what it could not write
        full.close()
    if stream == "stdout":
        assert capsys.readouterr().err.splitlines()[-1] == (
            "pelton: error: standard output cannot be written: No space left on device; all that was measured is kept "
            f"in {tmp_path}")
    result = read_result(tmp_path / "results.json")
    assert (result.status, result.cells[0].num_done) == ("complete", 3)
    assert (tmp_path / "report.html").exists()


def test_interrupt_keeps_what_was_measured(tmp_path):
    """Ctrl-C in the second cell: its first requests and the whole first cell are kept, exit status 130."""
    child = None
    ready = threading.Event()

    def interrupt_later(number, body):
        # Three answers of the 40-token cell go out before the interrupt; the next one never comes.
        if not (measured(body) and COUNT(body) == 40) or sum(COUNT(b) == 40 for b in made.bodies) < 3:
            return None
        ready.wait()
        child.send_signal(signal.SIGINT)
        return "hang"

    with server(fault=interrupt_later) as made:
        options = (f"url={made.url!r}, concurrency=(1,), prompt_tokens=(12, 40), output_tokens=({OUTPUT_TOKENS},), "
                   f"num_requests=6, num_warmup=0, calibrate=False, output_dir={str(tmp_path)!r}")
        code = ("import sys; from pelton.bench.options import SweepOptions; from pelton.bench.sweep import run_sweep; "
                f"sys.exit(run_sweep(SweepOptions({options})))")
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        ready.set()
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in err
    assert err.splitlines()[-1].endswith(b"interrupted")
    result = read_result(tmp_path / "results.json")
    assert (result.status, result.stop_reason) == ("partial", "interrupted")
    assert [(c.num_done, c.status) for c in result.cells] == [(6, "complete"), (3, "partial")]
    assert (tmp_path / "report.html").exists()


def test_benchmark_needs_no_torch():
    code = ("import sys, pelton.bench.serve, pelton.bench.sweep, pelton.bench.search, pelton.bench.calibrate, "
            "pelton.bench.schema, pelton.bench.workers.worker, pelton.bench.report.command, pelton.bench.offline, "
            "pelton.bench.calibration; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'plotly')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
