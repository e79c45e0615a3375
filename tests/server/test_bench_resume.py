"""Searching, and going on with a run that ended early, against the calibration server."""

from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread

from pelton.bench.calibration import Behaviour
from pelton.bench.files import read_result, write_result
from pelton.bench.options import SearchOptions, SweepOptions
from pelton.bench.results import Series
from pelton.bench.search import run_search
from pelton.bench.sweep import run_sweep
from pelton.errors import ConfigError, ServerError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)


def serving(**behaviour):
    return serve_in_thread(Behaviour(**{"model": "tiny", "root": str(TINY), "count_prompt": COUNT, **behaviour}))


def fields(folder, **options):
    return {"concurrency": (1, 2), "prompt_tokens": (20, 30), "output_tokens": (5,), "num_requests": 4, "num_warmup": 1,
            "output_dir": str(folder), "calibrate": False, **UNWATCHED, "request_timeout": 20.0, **options}


def measured(body):
    return body["max_tokens"] == 5


def test_a_failed_sweep_is_gone_on_with(tmp_path):
    def break_once(number, body):
        return "status_500" if measured(body) and COUNT(body) == 30 else None

    with serving(fault=break_once) as server, pytest.raises(ServerError):
        run_sweep(SweepOptions(url=server.url, **fields(tmp_path)))
    first = read_result(tmp_path / "results.json")
    sent = {body["messages"][0]["content"] for body in server.bodies if measured(body)}
    whole = [c for c in first.cells if c.status == "complete"]
    assert 1 <= len(whole) < 4
    watched = Series(source="server", name="running", unit="", at_us=[5], values=[1.0])
    write_result(msgspec.structs.replace(first, series=[watched]), tmp_path)
    with serving() as server:
        assert run_sweep(SweepOptions(url=server.url, **fields(tmp_path, resume=True))) == 0
    second = read_result(tmp_path / "results.json")
    assert (second.status, len(second.cells), second.skipped_cells) == ("complete", 4, [])
    kept = {c.id for c in whole}
    assert [r for r in second.requests if r.cell in kept] == [r for r in first.requests if r.cell in kept]
    assert sum(measured(body) for body in server.bodies) == (4 - len(kept)) * 5
    again = {body["messages"][0]["content"] for body in server.bodies if measured(body)}
    assert not sent & again
    assert min(r.sent_us for r in second.requests if r.cell not in kept) > max(
        r.end_us for r in second.requests if r.cell in kept)
    assert second.workload.seed == first.workload.seed
    assert second.series[0] == watched


def test_nothing_to_resume_is_a_run_from_the_start(tmp_path):
    with serving() as server:
        assert run_sweep(SweepOptions(url=server.url, **fields(tmp_path, resume=True))) == 0
    assert len(read_result(tmp_path / "results.json").cells) == 4


def test_another_server_or_command_is_not_gone_on_with(tmp_path):
    with serving() as server:
        run_sweep(SweepOptions(url=server.url, **fields(tmp_path)))
    with serving(model="other") as server, pytest.raises(ConfigError, match="resume: the earlier run had model 'tiny'"):
        run_sweep(SweepOptions(url=server.url, **fields(tmp_path, resume=True)))
    options = fields(tmp_path, resume=True, prompt_tokens=(20,))
    del options["concurrency"]
    with serving() as server, pytest.raises(ConfigError, match="is the result of bench sweep, not of bench search"):
        run_search(SearchOptions(url=server.url, **options))
    with serving() as server:
        for changed, name in (({"extra_inputs": "n_probs:1"}, "extra_inputs"), ({"temperature": 0.5}, "temperature"),
                              ({"session_turns": 2}, "session")):
            with pytest.raises(ConfigError, match=f"resume: the earlier run had {name}"):
                run_sweep(SweepOptions(url=server.url, **fields(tmp_path, resume=True, **changed)))


@pytest.mark.parametrize(("limit_ms", "best"), [(1000, 4.0), (5, None)])
def test_search_holds_cells_against_the_targets(tmp_path, limit_ms, best):
    options = fields(tmp_path, prompt_tokens=(20,), search_most=4.0, goodput=f"ttft:{limit_ms}", attainment=50.0)
    del options["concurrency"]
    with serving(ttft_s=0.02) as server:
        assert run_search(SearchOptions(url=server.url, **options)) == 0
    search = read_result(tmp_path / "results.json").search
    assert (search.best, search.is_settled) == (best, True)


def test_a_search_measures_a_level_again_until_its_requests_tell(tmp_path):
    """Of 50 % eight requests in time tell, of 90 % 29; the second search goes on with what the first has measured."""
    options = fields(tmp_path, prompt_tokens=(20,), search_most=1.0, goodput="ttft:15000", attainment=50.0)
    del options["concurrency"]
    with serving() as server:
        assert run_search(SearchOptions(url=server.url, **options)) == 0
        assert sum(map(measured, server.bodies)) == 2 * 5
    first = read_result(tmp_path / "results.json")
    assert (first.status, first.search.best, first.cells[0].num_trials) == ("complete", 1.0, 2)
    with serving() as server:
        assert run_search(SearchOptions(url=server.url, **options | {"attainment": 90.0, "resume": True})) == 0
        assert sum(map(measured, server.bodies)) == 6 * 5
    (cell,), search = (second := read_result(tmp_path / "results.json")).cells, second.search
    assert (second.status, cell.num_trials, cell.num_done, cell.num_requests) == ("complete", 8, 32, 32)
    assert [r for r in second.requests if r.trial < 2] == first.requests
    assert (search.best, search.is_settled, search.undecided) == (1.0, True, [])
    assert (search.steps[0].evidence.num_within, search.steps[0].evidence.num_requests) == (32, 32)
    with serving() as server:
        assert run_search(SearchOptions(url=server.url, **options | {"attainment": 90.0, "resume": True})) == 0
        assert not any(map(measured, server.bodies))
    assert read_result(tmp_path / "results.json").search == search


def test_search_finds_the_rate_that_a_full_server_serves(tmp_path):
    """Three slots and 100 ms an answer serve 30 requests a second."""
    options = fields(tmp_path, prompt_tokens=(20,), num_warmup=2, num_requests=None, measurement_duration=1.5,
                     search_for="request_rate", search_start=10.0, search_most=160.0, search_precision=0.5,
                     arrivals="constant")
    del options["concurrency"]
    with serving(ttft_s=0.1, num_slots=3) as server:
        assert run_search(SearchOptions(url=server.url, **options)) == 0
    assert server.peak_in_flight == 3
    search = read_result(tmp_path / "results.json").search
    assert 10 <= search.best < 33
    assert search.least_failed <= 40


def test_search_finds_where_a_server_refuses(tmp_path, capsys):
    """The server answers at most five at a time and refuses the others."""
    made = {}

    def refuse(number, body):
        return "status_500" if measured(body) and made["server"].num_in_flight >= 5 else None

    with serving(ttft_s=0.02, fault=refuse) as server:
        made["server"] = server
        options = fields(tmp_path, prompt_tokens=(20,), num_warmup=0, num_requests=20, search_most=32.0)
        del options["concurrency"]
        assert run_search(SearchOptions(url=server.url, **options)) == 0
    result = read_result(tmp_path / "results.json")
    assert (result.kind, result.search.best, result.search.least_failed) == ("search", 5.0, 6.0)
    assert "Search" in capsys.readouterr().out
