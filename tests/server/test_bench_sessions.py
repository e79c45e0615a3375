"""Conversations against the calibration server."""

import itertools
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread

from pelton.bench.calibration import Behaviour
from pelton.bench.files import read_result
from pelton.bench.options import SweepOptions
from pelton.bench.sweep import run_sweep
from pelton.errors import ConfigError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)


def converse(folder, *, status=0, fault=lambda number, body: None, **options):
    """One cell of conversations; returns it, its records by conversation, and the requests' bodies."""
    load = {} if {"request_rate", "stages"} & set(options) else {"concurrency": (2,)}
    fields = {**load, "prompt_tokens": (20,), "output_tokens": (5,), "num_requests": 12, "num_warmup": 1,
              "session_turns": 3, "session_turn_tokens": 7, "output_dir": str(folder), "calibrate": False, **UNWATCHED,
              "request_timeout": 20.0, **options}
    behaviour = Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT, ttft_s=0.002, fault=fault)
    with serve_in_thread(behaviour) as server:
        assert run_sweep(SweepOptions(url=server.url, **fields)) == status
    result = read_result(folder / "results.json")
    (cell,) = result.cells
    sessions = {}
    for record in result.requests:
        sessions.setdefault(record.session, []).append(record)
    return cell, sessions, [body for body in server.bodies if body["max_tokens"] == 5]


def test_each_turn_follows_the_answer_before_it(tmp_path):
    cell, sessions, bodies = converse(tmp_path)
    assert cell.id == "c2-p20-o5-t3"
    assert (cell.num_done, cell.status, cell.errors, cell.has_fixed_sizes) == (12, "complete", {}, False)
    assert cell.peak_in_flight <= 2
    assert set(sessions) == {"warm-up 0", "0", "1", "2", "3"}
    for records in sessions.values():
        assert [r.turn for r in records] == [0, 1, 2]
        for before, after in itertools.pairwise(records):
            assert after.scheduled_us == before.end_us
            assert after.sent_us >= before.end_us
            assert after.index == before.index + 1
            assert after.prefix_tokens == before.client_prompt_tokens
            assert after.client_prompt_tokens >= before.client_prompt_tokens + before.output_tokens + 7
        assert all(r.server_prompt_tokens == r.client_prompt_tokens for r in records)
    last = [body["messages"] for body in bodies if len(body["messages"]) == 5]
    assert len(last) == 5
    for messages in last:
        assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant", "user"]
        assert messages[1]["content"].startswith(" steady wheel")
    firsts = [m["content"].split()[0] for messages in last for m in messages if m["role"] == "user"]
    assert len(set(firsts)) == len(firsts)


def test_thinking_is_in_the_schedule(tmp_path):
    _, sessions, _ = converse(tmp_path, think_time=0.02)
    pauses = [after.scheduled_us - before.end_us for records in sessions.values()
              for before, after in itertools.pairwise(records)]
    assert min(pauses) >= 0
    assert max(pauses) > 10_000
    assert all(r.sent_us >= r.scheduled_us for records in sessions.values() for r in records)


def test_number_of_requests_cuts_the_last_conversation(tmp_path):
    cell, sessions, _ = converse(tmp_path, num_requests=7)
    assert cell.num_done == 7
    assert [len(sessions[name]) for name in ("0", "1", "2")] == [3, 3, 1]


def test_conversations_arrive_at_a_rate(tmp_path):
    cell, sessions, _ = converse(tmp_path, request_rate=(100.0,), arrivals="constant")
    starts = [sessions[name][0].scheduled_us for name in ("warm-up 0", "0", "1", "2", "3")]
    assert [round((b - a) / 1e3) for a, b in itertools.pairwise(starts)] == [10, 10, 10, 10]
    assert cell.num_done == 12


def test_a_turn_that_fails_ends_its_conversation(tmp_path):
    def break_second(number, body):
        return "status_400" if len(body["messages"]) == 3 and number % 2 else None

    cell, sessions, _ = converse(tmp_path, fault=break_second, num_requests=30)
    failed = [records for records in sessions.values() if records[-1].error is not None]
    assert failed
    assert all(len(records) == 2 and records[-1].error == "http_400" for records in failed)
    assert cell.status == "partial"


@pytest.mark.parametrize("load", [{"num_requests": 12}, {"num_requests": None, "measurement_duration": 0.2}])
def test_two_processes_hold_conversations_as_one(tmp_path, load):
    cell, sessions, bodies = converse(tmp_path, workers="2", concurrency=(3,), num_warmup=2, **load)
    sessions.pop(None, None)  # the request that finds out how many can be needed
    measured = {name: records for name, records in sessions.items() if not name.startswith("warm-up")}
    assert (cell.errors, cell.client.num_workers, cell.status) == ({}, 2, "complete")
    assert {r.worker for records in measured.values() for r in records} == {0, 1}
    assert 2 <= cell.peak_in_flight <= 3
    assert all([r.turn for r in records] == list(range(len(records))) for records in sessions.values())
    assert all(len(records) == 3 for records in measured.values())
    assert len(measured) >= 4
    for records in sessions.values():
        assert len({r.worker for r in records}) == 1
        assert all(r.server_prompt_tokens == r.client_prompt_tokens == r.requested_prompt_tokens for r in records)
        for before, after in itertools.pairwise(records):
            assert after.scheduled_us == before.end_us
            assert after.prefix_tokens == before.client_prompt_tokens
    firsts = [body["messages"][0]["content"].split()[0] for body in bodies if len(body["messages"]) == 1]
    assert len(set(firsts)) == len(firsts)


def test_conversations_go_through_stages(tmp_path):
    cell, sessions, _ = converse(tmp_path, stages="c1:0.1,c2:0.1", num_requests=None)
    stages = [records[0].stage for name, records in sessions.items() if name and not name.startswith("warm-up")]
    assert stages == sorted(stages)
    assert set(stages) == {"1: 1 in flight", "2: 2 in flight"}
    assert all(r.stage == records[0].stage for records in sessions.values() for r in records)
    assert cell.peak_in_flight == 2


@pytest.mark.parametrize(("options", "name"), [
    ({"endpoint": "completions"}, "session_turns"), ({"trace": "x"}, "trace"),
    ({"cancellation_rate": 0.5}, "cancellation_rate"), ({"think_time": -1.0}, "think_time")])
def test_what_conversations_cannot_do_is_refused(options, name):
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        SweepOptions(url="http://x", session_turns=2, **options)
