"""Answers that end when their client does: work is cancelled as soon as the connection closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pelton.errors import PeltonError
from pelton.server.body import ClientLeftError
from pelton.server.errors import EngineFault, ServerStoppingError, describe

T = TypeVar("T")
LAST_WORDS_S = 1.0
_log = logging.getLogger("pelton.server")
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no")]


async def unless_disconnected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Awaits the work, cancelling it if the client closes the connection first.

    Raises:
        ClientLeftError: it did. ServerStoppingError: this task was cancelled, as uvicorn does at the end of its grace.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnection(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeftError
    except asyncio.CancelledError:
        raise ServerStoppingError from None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, written as they are made.

    The status line waits for the first events: what fails before them is still answered with its own status. What
    fails later becomes an error event, after which the stream ends without [DONE].

    Args:
        events: yields whole events, one or several at a time; it is closed when the client leaves.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]):
        super().__init__()
        self._events = events
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(self._send_all(send), receive)
        except ClientLeftError:
            if not self._has_begun:  # later there is nothing to answer any more
                raise
        except Exception as error:
            if not self._has_begun:
                raise
            if not isinstance(error, PeltonError | EngineFault | ServerStoppingError):
                _log.exception("unhandled error within a stream")
            with contextlib.suppress(asyncio.TimeoutError):  # a client that reads nothing may block for ever
                await asyncio.wait_for(self._send_error(error, send), LAST_WORDS_S)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for part in events:
                if not self._has_begun:
                    self._has_begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _send_error(error: Exception, send: Send) -> None:
        _, content = describe(error)
        part = b"data: " + msgspec.json.encode(content) + b"\n\n"
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
