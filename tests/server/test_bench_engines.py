"""Engines beside each other, with the calibration server as the engines' programs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.real_server import is_running, wait_until_ended

from pelton import cli
from pelton.bench.engines import process
from pelton.bench.engines.process import running
from pelton.bench.engines.recipe import Engine
from pelton.bench.files import read_result
from pelton.errors import ServerError

PROGRAM = Path(__file__).parents[1] / "helpers" / "serve_calibrated.py"
RECIPE = f"""
variables:
  slow: "0.03"
workload:
  concurrency: [1, 2]
  prompt_tokens: [24]
  output_tokens: [6]
  num_requests: 4
  num_trials: 3
  calibrate: false
  watch_gpus: false
  watch_server: false
engines:
  - name: quick
    command: {sys.executable} {PROGRAM} ${{port}} 0.012
  - name: slow
    command: {sys.executable} {PROGRAM} ${{port}} ${{slow}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def pids(log: Path) -> list[int]:
    return [int(pid) for pid in re.findall(r"(?:pid|child) (\d+)", log.read_text())]


@pytest.mark.parametrize("keep", [[], ["--keep-running"]])
def test_engines_are_started_measured_in_rounds_stopped_and_compared(recipe, tmp_path, keep, capsys):
    out = tmp_path / "out"
    status = cli.main(["bench", "engines", str(recipe), "--set", "slow=0.036", "--output-dir", str(out), "--fail-if",
                       "itl_p50 > +50%", "--num-requests", "3", *keep])
    assert status == 4
    said = capsys.readouterr().out
    rounds = re.findall(r"round (\d) of 3: (\w+)", said)
    assert rounds == [(str(number), name) for number in (1, 2, 3) for name in ("quick", "slow")]
    assert "8 of 8 greedy answers are equal" in said
    comparison = json.loads((out / "compare.json").read_text())
    effects = {e["metric"]: e for e in comparison["cells"][0]["effects"]}
    assert effects["itl_p50"]["method"] == "paired trials"
    assert effects["itl_p50"]["says"] == "worse"
    for name in ("quick", "slow"):
        result = read_result(out / name / "results.json")
        assert result.status == "complete"
        assert [(c.num_trials, c.num_done) for c in result.cells] == [(3, 9), (3, 9)]
        assert {r.trial for r in result.requests} == {0, 1, 2}
        ends = [max(r.end_us for r in result.requests if r.trial == t) for t in range(3)]
        starts = [min(r.sent_us for r in result.requests if r.trial == t) for t in range(3)]
        assert ends[0] < starts[1] < ends[1] < starts[2]
        assert (out / name / "report.html").is_file()
        started = pids(out / name / "server.log")
        assert len(started) == (1 if keep else 3)
        assert not any(is_running(pid) for pid in started)


def test_a_stubborn_server_and_its_children_are_ended_too(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "STOP_S", 0.2)
    engine = Engine(name="stubborn", command=f"{sys.executable} {PROGRAM} ${{port}} 0", env={"STUBBORN": "1"})
    log = tmp_path / "log"
    with running(engine, log):
        server, child = pids(log)
        assert is_running(server)
        assert is_running(child)
    wait_until_ended(child)
    assert not is_running(server)


@pytest.mark.parametrize(("command", "message"), [
    (f"{sys.executable} -c 'print(\"no model here\"); raise SystemExit(7)'", r"ended with status 7 .*no model here"),
    ("no-such-program --port ${port}", "cannot be started: no-such-program: No such file"),
    (f"{sys.executable} -c 'import time; time.sleep(600)'", r"was not healthy after 0\.3 s")])
def test_servers_that_do_not_come_up(tmp_path, command, message):
    engine = Engine(name="broken", command=command, ready_timeout_s=30.0 if "status" in message else 0.3)
    with pytest.raises(ServerError, match=message), running(engine, tmp_path / "log"):
        raise AssertionError("it is not healthy")


def test_a_setup_command_that_fails_stops_the_server(tmp_path):
    log = tmp_path / "log"
    engine = Engine(name="e", command=f"{sys.executable} {PROGRAM} ${{port}} 0",
                    setup=[f"{sys.executable} -c 'raise SystemExit(\"cannot load\")'"])
    with pytest.raises(ServerError, match=r"ended with status 1: .*cannot load"), running(engine, log):
        raise AssertionError("its setup failed")
    assert not is_running(pids(log)[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_server_is_left_behind_by_a_run_that_is_ended(recipe, tmp_path, number, status):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pelton.cli", "bench", "engines", str(recipe), "--output-dir", str(out),
               "--num-requests", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert any("round 1" in line for line in run.stdout)
        run.send_signal(number)
        run.stdout.read()
        assert run.wait(60) == status
    assert not any(is_running(pid) for pid in pids(out / "quick" / "server.log"))
