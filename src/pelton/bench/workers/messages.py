"""What the benchmark and its client processes say to each other: msgpack over pipes, each message after its length."""

from __future__ import annotations

import asyncio
import struct

import msgspec

from pelton.bench.conversation import VoiceSpec
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.sessions import Script
from pelton.bench.load.tally import LoadResult

_LENGTH = struct.Struct("<Q")


class Setup(msgspec.Struct, tag=True):
    """To a process: which server to talk to. It answers nothing."""

    url: str
    headers: dict[str, str]
    timeout_s: float


class Prepare(msgspec.Struct, tag=True):
    """To a process: its part of a load. It opens its connections and says Ready."""

    job: LoadJob
    requests: list[Planned]
    num_connections: int
    scripts: list[Script] = []
    """Conversations instead of single requests."""
    voice: VoiceSpec | None = None
    """How conversations are spelt."""


class Ready(msgspec.Struct, tag=True):
    """From a process: it can start at once."""


class Go(msgspec.Struct, tag=True):
    """To a process: send the load; open loops count from `start_ns`. It says Done."""

    start_ns: int


class Stop(msgspec.Struct, tag=True):
    """To a process: end the load now and say Done."""


class Pulse(msgspec.Struct, tag=True):
    """From a process, now and then: its measured requests that have ended since the last one."""

    at_ns: int
    num_ended: int
    num_failed: int
    num_tokens: int
    latency_s: float
    """Mean of those answered in full; 0 without any."""
    ttfts_ms: list[float]
    """Of some of them."""
    num_in_flight: int
    """Now."""


class Done(msgspec.Struct, tag=True):
    """From a process: what became of its part. The requests come back without their bytes."""

    result: LoadResult


Order = Setup | Prepare | Go | Stop
Report = Ready | Pulse | Done
_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_reports = msgspec.msgpack.Decoder(Report)


def pack(message: Order | Report) -> bytes:
    """The message's bytes, length first."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_order(reader: asyncio.StreamReader) -> Order:
    """Raises asyncio.IncompleteReadError when the other side is gone."""
    return _orders.decode(await _read(reader))


async def read_report(reader: asyncio.StreamReader) -> Report:
    """Raises asyncio.IncompleteReadError when the other side is gone."""
    return _reports.decode(await _read(reader))


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)
