"""Several client processes, against the calibration server."""

import asyncio
import os
import signal
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread

from pelton.bench.calibration import Behaviour
from pelton.bench.client import Address, Client
from pelton.bench.event_loop import run
from pelton.bench.files import read_result
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.options import SweepOptions
from pelton.bench.sweep import run_sweep
from pelton.bench.workers import crew
from pelton.bench.workers.pool import WorkerPool
from pelton.errors import PeltonError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)


def sweep(folder, **options):
    fields = {"prompt_tokens": (20,), "output_tokens": (6,), "num_warmup": 4, "output_dir": str(folder), "workers": "2",
              "request_timeout": 20.0, "calibrate": False, **UNWATCHED, **options}
    behaviour = Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT, ttft_s=0.01)
    with serve_in_thread(behaviour) as server:
        assert run_sweep(SweepOptions(url=server.url, **fields)) == 0
    result = read_result(folder / "results.json")
    (cell,) = result.cells
    return cell, result.requests, server


@pytest.mark.parametrize("load", [
    {"concurrency": (5,), "num_requests": 21}, {"request_rate": (300.0,), "num_requests": 21},
    {"concurrency": (5,), "measurement_duration": 0.2}, {"stages": "c2:0.2,c3-5:0.2"}])
def test_two_processes_measure_as_one(tmp_path, load):
    cell, records, server = sweep(tmp_path, **load)
    measured = [r for r in records if not r.is_warmup]
    assert cell.status == "complete"
    assert cell.errors == {}
    assert {r.worker for r in measured} == {0, 1}
    assert len({(r.is_warmup, r.index) for r in records}) == len(records)
    assert all(r.is_ok and r.output_tokens == 6 and r.first_content_us - r.sent_us >= 10_000 for r in measured)
    assert all(r.sent_us >= r.scheduled_us for r in measured)
    assert (cell.client.num_workers, len(cell.client.cpu_share)) == (2, 2)
    if "num_requests" in load:
        assert len(measured) == 21
    if "stages" in load:
        assert [s.peak_in_flight for s in cell.stages] == [2, 5]
    if "request_rate" not in load:
        assert server.peak_in_flight == 5


@pytest.mark.parametrize("num_warmup", [0, 3])
def test_two_processes_count_a_stage_together(tmp_path, num_warmup):
    """The first stage has a slot in one of the processes only; the other follows its clock all the same."""
    cell, records, server = sweep(tmp_path, stages="c1:4req,c5:37req,c2:0.1,c3:11req", num_warmup=num_warmup)
    stages = {name: [r for r in records if r.stage == name] for name in (s.name for s in cell.load.stages)}
    assert cell.status == "complete"
    assert [len(stages[s.name]) for s in cell.load.stages if s.num_requests] == [4, 37, 11]
    assert [s.peak_in_flight for s in cell.stages][:2] == [1, 5]
    assert {r.worker for r in stages["2: 5 in flight"]} == {0, 1}
    assert len({r.index for r in records if not r.is_warmup}) == sum(not r.is_warmup for r in records)
    begins = [min(r.scheduled_us for r in part) for part in stages.values()]
    assert begins == sorted(begins)
    assert server.peak_in_flight == 5


def test_a_client_that_is_too_busy_measures_again_from_more_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "MAX_CPU_SHARE", -1.0)
    monkeypatch.setattr(crew, "most_workers", lambda host: 2)
    cell, records, server = sweep(tmp_path, concurrency=(4,), num_requests=8, workers="auto")
    assert (cell.client.num_workers, cell.num_done, cell.status) == (2, 8, "complete")
    assert len(records) == 8 + 4
    assert {r.worker for r in records} == {0, 1}
    assert sum(body["max_tokens"] == 6 for body in server.bodies) == 2 * len(records)


def test_never_more_processes_than_slots(tmp_path):
    cell, records, server = sweep(tmp_path, concurrency=(1,), num_requests=3)
    assert cell.client.num_workers == 1
    assert server.peak_in_flight == 1
    assert all(r.is_ok for r in records)


def job(url, count):
    client = Client(Address.parse(url), headers={}, timeout_s=20.0)
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 2}'
    requests = [Planned(index=i, is_warmup=False, request=client.build("POST", "/completions", body),
                        requested_prompt_tokens=1, client_prompt_tokens=1, requested_output_tokens=2)
                for i in range(count)]
    return client, requests


def test_a_cancelled_load_keeps_what_had_ended():
    """The third request of each process never gets an answer; then the whole load is cancelled."""
    async def scenario(server):
        client, requests = job(server.url, 12)
        pool = WorkerPool(client)
        task = asyncio.create_task(pool.run(LoadJob(concurrency=2), requests, num_workers=2))
        while server.num_requests < 6:
            await asyncio.sleep(0.01)
        task.cancel()
        results = await task
        pool.close()
        return results

    with serve_in_thread(Behaviour(model="tiny", fault=lambda number, body: "hang" if number >= 4 else None)) as server:
        results = run(scenario(server))
    assert all(r.was_cancelled and r.stop_reason == "interrupted" for r in results)
    assert sum(len(r.sent) for r in results) == 4


def test_a_process_that_dies_is_one_line():
    async def scenario(server):
        client, requests = job(server.url, 4)
        pool = WorkerPool(client)
        await pool.grow(2)
        os.kill(pool._processes[0].pid, signal.SIGKILL)
        try:
            await pool.run(LoadJob(concurrency=2), requests, num_workers=2)
        finally:
            pool.close()

    with serve_in_thread(Behaviour(model="tiny")) as server:
        with pytest.raises(PeltonError, match=r"client process .* died"):
            run(scenario(server))
