import asyncio

import pytest

from pelton.bench.client import Exchange, Failure, now_ns
from pelton.bench.framing import Response
from pelton.bench.load.closed_loop import run_closed_loop

REQUESTS = [b"%d" % i for i in range(10)]


class FakeServer:
    """Answers after `turns` passes of the event loop; counts what is in flight."""

    def __init__(self, *, fails=lambda number: False, turns=3):
        self.fails, self.turns = fails, turns
        self.in_flight = self.peak = self.num_seen = 0

    async def send(self, request):
        self.num_seen += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.in_flight -= 1
        failure = Failure("connect", "refused") if self.fails(int(request)) else None
        return Exchange(response=Response(status=200), failure=failure)


def run(server, *, requests=REQUESTS, **options):
    return asyncio.run(run_closed_loop(requests, server.send, **options))


@pytest.mark.parametrize(("concurrency", "peak"), [(1, 1), (4, 4), (64, 10)])
def test_keeps_so_many_in_flight(concurrency, peak):
    server = FakeServer()
    result = run(server, concurrency=concurrency)
    assert server.peak == peak
    assert sorted(result.exchanges) == list(range(10))
    assert result.stop_reason is None


def test_failures_in_a_row_end_the_load():
    server = FakeServer(fails=lambda number: number >= 2)
    result = run(server, concurrency=2, max_failures_in_a_row=4)
    assert result.is_server_failing
    assert 6 <= len(result.exchanges) < 10


def test_single_failures_do_not():
    result = run(FakeServer(fails=lambda number: number % 2), concurrency=1, max_failures_in_a_row=2)
    assert len(result.exchanges) == 10


def test_spent_budget_still_fills_every_slot_once():
    result = run(FakeServer(), concurrency=3, deadline_ns=now_ns() - 1)
    assert sorted(result.exchanges) == [0, 1, 2]
    assert result.stop_reason == "the time budget was spent"


def test_cancelled_load_returns_what_had_ended():
    async def scenario():
        server = FakeServer()
        ended = asyncio.Event()
        task = asyncio.create_task(run_closed_loop(REQUESTS, server.send, concurrency=2,
                                                   on_end=lambda exchange: ended.set()))
        await ended.wait()
        task.cancel()
        return await task

    result = asyncio.run(scenario())
    assert result.was_cancelled
    assert 1 <= len(result.exchanges) < 10


def test_no_requests_is_no_load():
    assert run(FakeServer(), requests=[], concurrency=4).exchanges == {}
