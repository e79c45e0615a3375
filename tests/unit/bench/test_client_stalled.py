"""A client that stood still: what is kept of it, and what the audit makes of it."""

from types import SimpleNamespace

import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import audit
from pelton.bench.load.tally import LoadResult
from pelton.bench.results import ClientLoad, LoadSpec, Stall
from pelton.bench.run import join_trial
from pelton.bench.trial import _client_load

STEP_US = 17_000


def waves(num_waves, *, in_flight=1, stalled_us=0, at=0):
    """As many requests at a time; the first tokens of wave `at` wait until the client wakes, and so does the rest."""
    records = []
    for wave in range(num_waves):
        record = later(request(), wave * STEP_US + (stalled_us if wave > at else 0))
        if wave == at:
            record = msgspec.structs.replace(later(record, stalled_us), sent_us=record.sent_us,
                                             scheduled_us=record.scheduled_us)
        records += [msgspec.structs.replace(record, index=wave * in_flight + i) for i in range(in_flight)]
    return records


def found(records, *stalls, **fields):
    """What the audit says of a client that stood still, if anything."""
    in_flight = fields.pop("in_flight", 1)
    fields = {"load": LoadSpec(kind="closed", concurrency=in_flight, num_requests=len(records)), **fields}
    made = result([(spec(**fields), records)])
    client = ClientLoad(num_workers=1 + max((s.worker for s in stalls), default=0), cpu_share=[0.1], stalls=stalls)
    made = msgspec.structs.replace(made, cells=[msgspec.structs.replace(made.cells[0], client=client)])
    return [f for f in audit(made) if f.name == "client_stalled"]


def stall(start_us, for_us, **fields):
    return Stall(**{"trial": 0, "worker": 0, "start_us": start_us, "end_us": start_us + for_us, **fields})


def test_a_large_part_of_the_time_is_a_failure():
    """0.8 s of 2.82 s: throughput is as far off, whatever the percentiles are."""
    records = waves(119, in_flight=4, stalled_us=800_000, at=60)
    (finding,) = found(records, stall(60 * STEP_US, 800_000), in_flight=4)
    assert finding.severity == "failure"
    assert finding.evidence == (
        "c4-p16-o4: the client stood still for 800 ms, 28.3% of the time, 800 ms of it at once, with 4 of 476 requests "
        "in flight or due")
    assert "quieter machine" in finding.advice


def test_percentiles_that_may_be_the_clients_are_a_warning():
    """8 of 720 requests are more than one of every hundred; 8 of 1,600 are not, and 3 % of the time is little."""
    records = waves(200, in_flight=8, stalled_us=160_000, at=50)
    once = stall(50 * STEP_US, 160_000)
    assert found(records, once, in_flight=8) == []
    (finding,) = found(records[:720], once, in_flight=8)
    assert finding.severity == "warning"
    assert finding.evidence == (
        "c8-p16-o4: the client stood still for 160 ms, 9.5% of the time, 160 ms of it at once, with 8 of 720 requests "
        "in flight or due; P99 of the time to first token is 139.6 ms, less that time 10.0 ms")


def test_a_short_cell_does_not_fail_for_one_hiccup():
    """A third of the time, but no more than 200 ms."""
    (finding,) = found(waves(20, stalled_us=200_000, at=3), stall(3 * STEP_US, 200_000))
    assert finding.severity == "warning"


@pytest.mark.parametrize(("start_us", "elsewhere"), [(50 * STEP_US, {"worker": 1}), (50 * STEP_US, {"trial": 1}),
                                                     (-900_000, {})])
def test_only_stalls_of_the_own_process_trial_and_time_count(start_us, elsewhere):
    records = waves(90, in_flight=8, stalled_us=160_000, at=50)
    assert found(records, stall(50 * STEP_US, 160_000), in_flight=8)
    assert found(records, stall(start_us, 160_000, **elsewhere), in_flight=8) == []


def test_open_loops_count_from_the_schedule():
    """Five of forty were due while the client stood still, and left together."""
    records = [later(request(index=i), 100_000 * i) for i in range(40)]
    woke_us = 1_500_000
    records = [r if not 10 <= r.index < 15 else msgspec.structs.replace(
        later(r, woke_us - r.sent_us), scheduled_us=r.scheduled_us) for r in records]
    (finding,) = found(records, stall(1_000_000, 500_000), load=LoadSpec(kind="constant", rate=10.0, num_requests=40))
    assert finding.severity == "failure"
    assert "5 of 40 requests in flight or due" in finding.evidence
    assert "P95 of the time to first token from schedule is 315.0 ms, less that time 10.0 ms" in finding.evidence


def test_stalls_of_all_processes_are_kept():
    first = LoadResult(loop_lags_us=[100.0, 300_000.0], stalls_ns=[(2_000_000_000, 2_300_000_000)])
    second = LoadResult(loop_lags_us=[200_000.0], stalls_ns=[(3_000_000_000, 3_200_000_000)])
    client = _client_load([first, second], 4, 1_000_000_000)
    assert client.loop_lag_max_us == 300_000.0
    assert client.stalls == [stall(1_000_000, 300_000, trial=4), stall(2_000_000, 200_000, trial=4, worker=1)]
    assert _client_load([LoadResult()], 0, 0).loop_lag_max_us is None


def test_stalls_of_all_trials_are_kept():
    cell = spec().empty()
    for trial, lag_us in enumerate((200_000, 300_000, 5)):
        stalls = [(0, lag_us * 1000)] if lag_us > 5 else []
        client = _client_load([LoadResult(loop_lags_us=[float(lag_us)], stalls_ns=stalls)], trial, 0)
        cell = join_trial(cell, SimpleNamespace(client=client, num_held=0, stop_reason=None), trial)
    assert cell.client.loop_lag_max_us == 300_000.0
    assert [(s.trial, s.end_us - s.start_us) for s in cell.client.stalls] == [(0, 200_000), (1, 300_000)]


def test_results_from_before_are_read():
    client = msgspec.json.decode(b'{"num_workers": 1, "cpu_share": [0.1], "loop_lag_p99_us": 9.0}', type=ClientLoad)
    assert (client.loop_lag_max_us, client.stalls) == (None, [])
