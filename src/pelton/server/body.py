"""Reads request bodies up to a limit; larger ones are refused before or while they arrive, never buffered whole."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pelton.errors import RequestError
from pelton.server.errors import JsonResponse, error_response

DRAIN_S = 2.0
DRAIN_BYTES = 256 * 2**20


class BodyTooLargeError(RequestError):
    """The body exceeds the server's limit."""

    def __init__(self, limit: int):
        super().__init__(f"the request body exceeds {limit:,} bytes, the limit of this server (--max-body-bytes)",
                         code="body_too_large", status=413)


class ClientLeftError(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLargeError: more than `limit` bytes are announced or come. ClientLeftError: the client went away.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLargeError(limit)
    parts, size, has_more = [], 0, True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLargeError(limit)
        parts.append(part)
        has_more = message.get("more_body", False)
    return b"".join(parts)


class TooLargeResponse(JsonResponse):
    """Answers 413 at once, then throws away what the client is still sending, for a while.

    Closing a socket with unread bytes resets the connection, and the client might never see the answer.
    """

    def __init__(self, error: BodyTooLargeError):
        plain = error_response(error)
        super().__init__(None, status_code=413, headers={"Connection": "close"})
        self.body = plain.body
        self.headers["content-length"] = str(len(plain.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        deadline, size = time.monotonic() + DRAIN_S, 0
        while time.monotonic() < deadline and size < DRAIN_BYTES:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})
