"""A client process: `python -m pelton.bench.workers.worker`, ordered about over its standard input and output."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from pelton.bench import event_loop
from pelton.bench.client import Address, Client, allow_connections
from pelton.bench.load.run_load import run_load
from pelton.bench.load.tally import LoadResult
from pelton.bench.workers.messages import Done, Go, Prepare, Ready, Report, Setup, Stop, pack, read_order


class Worker:
    """Follows orders until its standard input closes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._client: Client | None = None
        self._prepared: Prepare | None = None
        self._load: asyncio.Task[None] | None = None

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
        _say(Done(_slim(await run_load(prepared.job, prepared.requests, self._client.send))))


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
