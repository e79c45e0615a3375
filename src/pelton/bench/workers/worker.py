"""A client process: `python -m pelton.bench.workers.worker`, ordered about over its standard input and output."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from pelton.bench import event_loop
from pelton.bench.client import Address, Client, Exchange, allow_connections, now_ns
from pelton.bench.conversation import ChatVoice
from pelton.bench.glimpse import is_answer, latency_s, num_tokens, ttft_ms
from pelton.bench.load.plan import Planned
from pelton.bench.load.run_load import run_load
from pelton.bench.load.sessions import run_conversations
from pelton.bench.load.tally import LoadResult
from pelton.bench.workers.messages import Done, Go, Prepare, Pulse, Ready, Report, Setup, Stop, pack, read_order

PULSE_S = 0.5
MOST_TTFTS = 100  # of one pulse: enough for a median, and little work beside the load


class Worker:
    """Follows orders until its standard input closes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._client: Client | None = None
        self._prepared: Prepare | None = None
        self._load: asyncio.Task[None] | None = None
        self._seen = Seen()

    async def serve(self) -> None:
        while True:
            try:
                order = await read_order(self._reader)
            except asyncio.IncompleteReadError:  # the benchmark ended
                return
            if isinstance(order, Setup):
                self._client = Client(Address.parse(order.url), headers=order.headers, timeout_s=order.timeout_s)
            elif isinstance(order, Prepare):
                self._prepared = order
                allow_connections(order.num_connections)
                await self._client.open_connections(order.num_connections)
                _say(Ready())
            elif isinstance(order, Go):
                self._prepared.job.start_ns = order.start_ns
                self._load = asyncio.create_task(self._run())
            elif isinstance(order, Stop) and self._load is not None:
                self._load.cancel()

    async def _run(self) -> None:
        prepared, self._prepared = self._prepared, None
        self._seen = Seen()
        pulse = asyncio.create_task(self._tell())
        if prepared.voice is None:
            result = await run_load(prepared.job, prepared.requests, self._client.send, on_end=self._count)
        else:
            result = await run_conversations(prepared.job, prepared.scripts, ChatVoice(prepared.voice, self._client),
                                             self._client.send, on_end=self._count)
        pulse.cancel()
        _say(Done(_slim(result)))

    def _count(self, planned: Planned, exchange: Exchange) -> None:
        if not planned.is_warmup:
            self._seen.add(exchange)

    async def _tell(self) -> None:
        """Says now and then what has ended, for whoever watches."""
        while True:
            await asyncio.sleep(PULSE_S)
            _say(self._seen.pulse(self._client.num_in_flight))
            self._seen = Seen()


class Seen:
    """What was seen of the requests that ended since the last pulse."""

    def __init__(self) -> None:
        self._num_ended = self._num_failed = self._num_tokens = 0
        self._latency_s = 0.0
        self._ttfts_ms: list[float] = []

    def add(self, exchange: Exchange) -> None:
        self._num_ended += 1
        if not is_answer(exchange):
            self._num_failed += not exchange.was_cancelled
            return
        self._num_tokens += num_tokens(exchange)
        self._latency_s += latency_s(exchange)
        if len(self._ttfts_ms) < MOST_TTFTS and (first_ms := ttft_ms(exchange)) is not None:
            self._ttfts_ms.append(first_ms)

    def pulse(self, num_in_flight: int) -> Pulse:
        num_answered = max(self._num_ended - self._num_failed, 1)
        return Pulse(at_ns=now_ns(), num_ended=self._num_ended, num_failed=self._num_failed,
                     num_tokens=self._num_tokens, latency_s=self._latency_s / num_answered, ttfts_ms=self._ttfts_ms,
                     num_in_flight=num_in_flight)


def _slim(result: LoadResult) -> LoadResult:
    """Without the requests' bytes, which the benchmark has."""
    result.sent = [(msgspec.structs.replace(planned, request=b""), exchange) for planned, exchange in result.sent]
    return result


def _say(report: Report) -> None:
    data = memoryview(pack(report))
    while data:
        data = data[os.write(sys.stdout.fileno(), data):]


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    await Worker(reader).serve()


if __name__ == "__main__":
    event_loop.run(_main())
