import asyncio

import pytest

from pelton.bench.client import Exchange, Failure, now_ns
from pelton.bench.framing import Response
from pelton.bench.load import loop_watch
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import run_load


def planned(count, *, num_warmup=0, **fields):
    return [Planned(index=i, is_warmup=i < num_warmup, request=b"%d" % i, requested_prompt_tokens=1,
                    client_prompt_tokens=1, requested_output_tokens=1, **fields) for i in range(count)]


class FakeServer:
    """Answers after `turns` passes of the event loop; counts what is in flight."""

    def __init__(self, *, fails=lambda number: False, turns=3):
        self.fails, self.turns = fails, turns
        self.in_flight = self.peak = 0
        self.order = []
        self.sent_ns = {}

    async def send(self, request, **_):
        self.order.append(int(request))
        self.sent_ns[int(request)] = now_ns()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        for _ in range(self.turns(int(request)) if callable(self.turns) else self.turns):
            await asyncio.sleep(0)
        self.in_flight -= 1
        failure = Failure("connect", "refused") if self.fails(int(request)) else None
        return Exchange(response=Response(status=200), failure=failure)


def run(server, requests=None, **job):
    fields = {"concurrency": None, **job}
    return asyncio.run(run_load(LoadJob(**fields), planned(10) if requests is None else requests, server.send))


def indices(result):
    return sorted(p.index for p, _ in result.sent)


@pytest.mark.parametrize(("concurrency", "peak"), [(1, 1), (4, 4), (64, 10)])
def test_closed_loop_keeps_so_many_in_flight(concurrency, peak):
    server = FakeServer()
    result = run(server, concurrency=concurrency)
    assert server.peak == peak
    assert indices(result) == list(range(10))
    assert result.stop_reason is None


def test_failures_in_a_row_end_the_load():
    server = FakeServer(fails=lambda number: number >= 2)
    result = run(server, concurrency=2, max_failures_in_a_row=4)
    assert result.is_server_failing
    assert 6 <= len(result.sent) < 10


def test_single_failures_do_not():
    result = run(FakeServer(fails=lambda number: number % 2), concurrency=1, max_failures_in_a_row=2)
    assert len(result.sent) == 10


def test_spent_budget_still_fills_every_slot_once():
    result = run(FakeServer(), concurrency=3, deadline_ns=now_ns() - 1)
    assert indices(result) == [0, 1, 2]
    assert result.stop_reason == "the time budget was spent"


def test_spent_budget_ends_the_warm_up():
    result = run(FakeServer(), planned(10, num_warmup=5), concurrency=2, deadline_ns=now_ns() - 1)
    assert indices(result) == [5, 6]


def test_cancelled_load_returns_what_had_ended():
    async def scenario(job):
        server = FakeServer()
        ended = asyncio.Event()
        task = asyncio.create_task(run_load(job, planned(10, due_ns=0), server.send,
                                            on_end=lambda planned, exchange: ended.set()))
        await ended.wait()
        task.cancel()
        return await task

    result = asyncio.run(scenario(LoadJob(concurrency=2)))
    assert result.was_cancelled
    assert 1 <= len(result.sent) < 10
    result = asyncio.run(scenario(LoadJob(concurrency=None, max_in_flight=1)))
    assert result.was_cancelled
    assert 1 <= len(result.sent) < 10


def test_no_requests_is_no_load():
    assert run(FakeServer(), [], concurrency=4).sent == []
    assert run(FakeServer(), []).sent == []


def test_warm_up_is_handed_over_without_draining():
    """The first measured request starts while the slowest warm-up request is still in flight."""
    server = FakeServer(turns=lambda number: 200 if number == 0 else 3)
    result = run(server, planned(12, num_warmup=4), concurrency=4)
    ends = [p.index for p, _ in result.sent]
    assert ends.index(0) > ends.index(4)
    assert server.peak == 4
    assert server.order == list(range(12))


def test_slots_are_filled_over_the_ramp():
    """No request ends before all slots are filled, so each slot sends one, at its time."""
    async def scenario():
        sent_ns, all_sent = [], asyncio.Event()

        async def send(request, **_):
            sent_ns.append(now_ns())
            if len(sent_ns) == 4:
                all_sent.set()
            await all_sent.wait()
            return Exchange(response=Response(status=200))

        start = now_ns()
        result = await run_load(LoadJob(concurrency=4, ramp_up_ns=20_000_000), planned(4), send)
        return result, [stamp - start for stamp in sent_ns]

    result, sent = asyncio.run(scenario())
    assert indices(result) == [0, 1, 2, 3]
    assert all(stamp >= slot * 5_000_000 for slot, stamp in enumerate(sent))


def test_duration_counts_from_the_first_measured_request_and_ends_the_sending():
    async def slow(request, **_):
        await asyncio.sleep(0.01)
        return Exchange(response=Response(status=200))

    job = LoadJob(concurrency=2, duration_ns=45_000_000)
    result = asyncio.run(run_load(job, planned(1000, num_warmup=6), slow))
    measured = [e.scheduled_ns for p, e in result.sent if not p.is_warmup]
    assert result.stop_reason is None
    assert len(measured) < 994
    assert max(measured) - min(measured) < 45_000_000
    assert sum(p.is_warmup for p, _ in result.sent) == 6


def test_open_loop_does_not_wait_for_answers():
    server = FakeServer(turns=100)
    requests = planned(10, due_ns=0)
    start = now_ns()
    result = run(server, requests, start_ns=start)
    assert server.peak == 10
    assert {e.scheduled_ns for _, e in result.sent} == {start}


def test_open_loop_sends_nothing_early_and_keeps_the_scheduled_times():
    server = FakeServer()
    requests = planned(8)
    for i, request in enumerate(requests):
        request.due_ns = i * 3_000_000
    start = now_ns() + 1_000_000
    result = run(server, requests, start_ns=start)
    for p, exchange in result.sent:
        assert exchange.scheduled_ns == start + p.due_ns
        assert server.sent_ns[p.index] >= exchange.scheduled_ns
    assert result.num_held == 0


def test_open_loop_holds_what_is_beyond_the_limit_and_says_so():
    server = FakeServer(turns=20)
    start = now_ns()
    result = run(server, planned(10, due_ns=0), max_in_flight=3, start_ns=start)
    assert server.peak == 3
    assert server.order == list(range(10))
    assert result.num_held == 7
    assert {e.scheduled_ns for _, e in result.sent} == {start}


def test_open_loop_that_cannot_keep_up_gives_up():
    result = run(FakeServer(turns=50), planned(10, due_ns=0), max_in_flight=1, give_up_ns=0)
    assert "overload: requests waited more than 0 s for a place among 1" in result.stop_reason
    assert len(result.sent) == 1


def test_process_is_watched():
    async def slow(request, **_):
        await asyncio.sleep(0.05)
        return Exchange(response=Response(status=200))

    result = asyncio.run(run_load(LoadJob(concurrency=1), planned(2), slow))
    assert len(result.loop_lags_us) >= 2
    assert min(result.loop_lags_us) >= 0
    assert result.cpu_share >= 0


def test_a_loop_that_stands_still_is_noticed(monkeypatch):
    """The clock jumps while a request is in flight, which is all that a stopped process sees; the load ends at once."""
    skipped_ns = [0]

    async def send(request, **_):
        skipped_ns[0] += 800_000_000
        return Exchange(response=Response(status=200))

    monkeypatch.setattr(loop_watch, "now_ns", lambda: now_ns() + skipped_ns[0])
    result = asyncio.run(run_load(LoadJob(concurrency=1), planned(1), send))
    ((start_ns, end_ns),) = result.stalls_ns
    assert end_ns - start_ns >= 780_000_000
    assert max(result.loop_lags_us) == (end_ns - start_ns) / 1e3
