import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.client import Address, Client, Exchange, Failure
from pelton.bench.framing import Response
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.tally import LoadResult
from pelton.bench.results import ClientError, ClientLoad
from pelton.bench.workers import crew, pool
from pelton.bench.workers.crew import Crew, most_workers
from pelton.bench.workers.messages import Done, Go, Prepare, Pulse, Ready, Setup, Stop, pack, read_order, read_report
from pelton.bench.workers.pool import join, share_out


def pulse(num_ended):
    return Pulse(at_ns=1, num_ended=num_ended, num_failed=0, num_tokens=7, latency_s=0.5, ttfts_ms=[1.5],
                 num_in_flight=2)


def planned(count):
    return [Planned(index=i, is_warmup=False, request=b"%d" % i, requested_prompt_tokens=1, client_prompt_tokens=1,
                    requested_output_tokens=1, due_ns=i) for i in range(count)]


@given(count=st.integers(0, 50), num_workers=st.integers(1, 8), concurrency=st.integers(8, 64))
def test_every_request_and_slot_goes_to_one_process(count, num_workers, concurrency):
    parts = share_out(LoadJob(concurrency=concurrency), planned(count), num_workers)
    assert sum(part.job.concurrency for part in parts) == concurrency
    assert sorted(p.index for part in parts for p in part.requests) == list(range(count))
    assert max(len(p.requests) for p in parts) - min(len(p.requests) for p in parts) <= 1
    assert all(part.num_connections <= part.job.concurrency for part in parts)


def test_open_loops_keep_their_order_and_share_their_places():
    parts = share_out(LoadJob(concurrency=None, max_in_flight=5), planned(7), 2)
    assert [part.job.max_in_flight for part in parts] == [3, 2]
    assert [[p.due_ns for p in part.requests] for part in parts] == [[0, 2, 4, 6], [1, 3, 5]]


def through_a_pipe(message, read):
    async def pass_on():
        reader = asyncio.StreamReader()
        reader.feed_data(pack(message))
        reader.feed_eof()
        found = await read(reader)
        with pytest.raises(asyncio.IncompleteReadError):
            await read(reader)
        return found

    return asyncio.run(pass_on())


@pytest.mark.parametrize("order", [Setup("http://x", {"a": "b"}, 1.5), Go(7), Stop(),
                                   Prepare(LoadJob(concurrency=2, deadline_ns=3), planned(3), 2)])
def test_orders_arrive_as_they_were(order):
    assert through_a_pipe(order, read_order) == order


def test_reports_arrive_as_they_were():
    response = Response(status=200, headers={"a": "b"}, pieces=[(1 << 62, b"\xff\x00")], first_byte_ns=3)
    exchange = Exchange(sent_ns=1, end_ns=9, response=response, failure=Failure("dropped", "gone"), was_cancelled=True)
    result = LoadResult(sent=list(zip(planned(1), [exchange])), stop_reason="why", cpu_share=0.25,
                        loop_lags_us=[1.0, 2.5])
    assert through_a_pipe(Done(result), read_report) == Done(result)
    assert through_a_pipe(Ready(), read_report) == Ready()
    assert through_a_pipe(pulse(3), read_report) == pulse(3)


def test_parts_are_joined():
    pair = (planned(1)[0], Exchange())
    joined = join([LoadResult(sent=[pair], num_held=1), LoadResult(sent=[pair], stop_reason="late", num_held=2,
                                                                   is_server_failing=True)])
    assert (len(joined.sent), joined.stop_reason, joined.num_held, joined.is_server_failing, joined.was_cancelled) == (
        2, "late", 3, True, False)


def busy(*shares):
    return ClientLoad(num_workers=len(shares), cpu_share=list(shares))


def test_crew_grows_where_a_core_is_not_enough(monkeypatch):
    monkeypatch.setattr(crew, "most_workers", lambda host: 3)
    client = Client(Address.parse("http://192.0.2.1"), headers={}, timeout_s=1.0)
    grown = Crew("auto", client)
    assert (grown.num_workers, grown.grow_for(busy(0.5)), grown.num_workers) == (1, False, 1)
    assert (grown.grow_for(busy(0.9)), grown.num_workers) == (True, 2)
    assert (grown.grow_for(busy(0.2, 0.8)), grown.num_workers) == (True, 3)
    assert (grown.grow_for(busy(1.0)), grown.num_workers) == (False, 3)
    slow = ClientError(concurrency=512, num_events=9, ttft_p50_us=1.0, ttft_p99_us=1.0, event_p50_us=1.0,
                       event_p99_us=10_001.0, itl_p50_us=1.0, itl_p99_us=1.0)
    assert Crew("auto", client, [slow]).num_workers == 2
    assert Crew("1", client, [slow]).num_workers == 1
    fixed = Crew("2", client)
    assert (fixed.num_workers, fixed.grow_for(busy(1.0)), fixed.num_workers) == (2, False, 2)


def test_a_local_server_keeps_half_of_the_cores(monkeypatch):
    monkeypatch.setattr(crew.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [most_workers(h) for h in ("127.0.0.1", "localhost", "::1", "10.0.0.1", "example.org")] == [4, 4, 4, 8, 8]


def test_pulses_are_counted_and_not_mistaken_for_the_result():
    async def receive():
        process = SimpleNamespace(stdout=asyncio.StreamReader())
        process.stdout.feed_data(pack(pulse(2)) + pack(pulse(5)) + pack(Done(LoadResult(num_held=4))))
        return await pool._report(process, Done, counted.append)

    counted = []
    assert asyncio.run(receive()) == Done(LoadResult(num_held=4))
    assert counted == [pulse(2), pulse(5)]
