"""A server of known timing, against which the benchmark itself is measured.

It speaks the OpenAI routes, generates nothing and sends token k of a request `ttft_s + k * itl_s` after the request
arrived, on an absolute schedule that does not drift; the event loop's timers make each up to about a millisecond late.
Every chunk carries `sent_ns`, the moment of its sending on the benchmark's clock, so that a client on the same machine
can tell its own delay. It can also misbehave in the ways real servers do. Written on bare asyncio protocols, so that
it costs little beside the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pelton.bench.client import now_ns

Fault = Literal["status_500", "status_400", "hang", "drop", "drop_mid_stream", "hang_mid_stream", "malformed",
                "stream_error", "no_finish", "empty"]
WORDS = (" steady", " wheel", " turning", " under", " falling", " water", " all", " day")


def _count_words(body: dict[str, Any]) -> int:
    prompt = body.get("prompt")
    if prompt is None:
        prompt = " ".join(_content_text(m["content"]) for m in body["messages"])
    return len(prompt) if isinstance(prompt, list) else len(prompt.split())


def _content_text(content: str | list[dict[str, Any]]) -> str:
    """A message's text, given whole or in parts."""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What the server does with each request."""

    ttft_s: float = 0.0
    """From the arrival of a request to its first token."""
    itl_s: float = 0.0
    """Between neighbouring tokens."""
    model: str = "calibration"
    """The served model's name."""
    root: str | None = None
    """Directory of the tokenizer, as /v1/models tells it."""
    count_prompt: Callable[[dict[str, Any]], int] = _count_words
    """Request body -> prompt tokens, for usage."""
    num_output: Callable[[dict[str, Any]], int] = lambda body: body.get("max_tokens", 16)
    """Request body -> tokens to generate."""
    num_slots: int | None = None
    """Requests answered at a time; more wait in order, as at a server that is full. None: any number."""
    num_reasoning: int = 0
    """Tokens at the beginning of each streamed chat answer that are reasoning."""
    tokens_per_chunk: int = 1
    reports_usage: bool = True
    cached_tokens: int | None = None
    """Reported as prompt_tokens_details.cached_tokens."""
    refused_fields: frozenset[str] = frozenset()
    """Requests with one of these fields get status 400."""
    api_key: str | None = None
    """Requests without this key get status 401."""
    keeps_bodies: bool = True
    """Remember the bodies of all requests."""
    tells_metrics: bool = False
    """Count the times that were kept, and tell them at /metrics in a Pelton server's names."""
    closes_connections: bool = False
    """Close every connection after one answer without having said so, as servers do with idle ones."""
    fault: Callable[[int, dict[str, Any]], Fault | None] = lambda number, body: None
    """(number of the request, its body) -> how to misbehave."""


@dataclass
class KeptTimes:
    """Times from a request's arrival to its first token, and between its tokens, as the timers really kept them."""

    ttft_s: float = 0.0
    num_first: int = 0
    gaps_s: float = 0.0
    num_gaps: int = 0

    def add(self, arrived: float, first: float, last: float, num_tokens: int) -> None:
        self.ttft_s += first - arrived
        self.num_first += 1
        self.gaps_s += last - first
        self.num_gaps += max(num_tokens - 1, 0)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        values = {"time_to_first_token_seconds_sum": self.ttft_s, "time_to_first_token_seconds_count": self.num_first,
                  "inter_token_seconds_sum": self.gaps_s, "inter_token_seconds_count": self.num_gaps}
        return "".join(f"pelton_{name} {value!r}\n" for name, value in values.items()).encode()


class CalibrationServer:
    """The server; runs in the event loop that starts it.

    Attributes:
        num_requests: generation requests so far.
        num_in_flight, peak_in_flight: requests being answered, now and at most.
        bodies: the generation requests' bodies in order of arrival.
        kept: the times that streamed requests really took.
    """

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.num_requests = 0
        self.num_in_flight = 0
        self.peak_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.kept = KeptTimes()
        self.connections: set[_Connection] = set()
        self.waiting: deque[Callable[[], None]] = deque()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listens; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=4096)
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    def next_waiting(self) -> None:
        """Begins the answer that has waited longest for a slot."""
        if self.waiting:
            self.waiting.popleft()()

    async def close(self) -> None:
        """Stops listening and drops all connections."""
        self._server.close()
        for connection in list(self.connections):
            connection.abort()
        await self._server.wait_closed()

    async def __aenter__(self) -> CalibrationServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Connection(asyncio.Protocol):
    """One client connection: reads requests one after another and answers them on schedule."""

    def __init__(self, server: CalibrationServer) -> None:
        self._server = server
        self._behaviour = server.behaviour
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._end_answer()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator or self._is_answering:
            return
        request_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, path, _ = request_line.split(" ", 2)
        key = self._behaviour.api_key
        if key is not None and headers.get("authorization") != f"Bearer {key}":
            self._reply(401, {"error": {"message": "wrong key"}})
        else:
            self._route(method, path, rest[:length])

    def _route(self, method: str, path: str, body: bytes) -> None:
        if (method, path) == ("GET", "/health"):
            self._reply(200, {})
        elif (method, path) == ("GET", "/v1/models"):
            entry = {"id": self._behaviour.model, "object": "model", "owned_by": "pelton"}
            if self._behaviour.root is not None:
                entry["root"] = self._behaviour.root
            self._reply(200, {"object": "list", "data": [entry]})
        elif (method, path) == ("GET", "/metrics") and self._behaviour.tells_metrics:
            self._reply_with(200, b"text/plain", self._server.kept.text())
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            self._generate(path, msgspec.json.decode(body))
        else:
            self._reply(404, {"error": {"message": f"no route {method} {path}"}})

    def _reply(self, status: int, data: dict[str, Any]) -> None:
        self._reply_with(status, b"application/json", msgspec.json.encode(data))

    def _reply_with(self, status: int, kind: bytes, body: bytes) -> None:
        self._transport.write(b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nServer: pelton-calibration\r\n"
                              b"Content-Length: %d\r\n\r\n" % (status, kind, len(body)) + body)
        self._close_if_told()

    def _generate(self, path: str, body: dict[str, Any]) -> None:
        server, behaviour = self._server, self._behaviour
        fault = behaviour.fault(server.num_requests, body)
        server.num_requests += 1
        if behaviour.keeps_bodies:
            server.bodies.append(body)
        refused = sorted(behaviour.refused_fields & body.keys())
        if refused or fault == "status_400":
            self._reply(400, {"error": {"message": f"unknown field {', '.join(refused) or 'prompt'}"}})
        elif body.get("model") != behaviour.model:
            self._reply(404, {"error": {"message": f"model {body.get('model')!r} does not exist"}})
        elif fault == "status_500":
            self._reply(500, {"error": {"message": "out of order"}})
        elif fault == "drop":
            self.abort()
        elif fault != "hang":
            answer = _Answer(behaviour, body, is_chat=path.endswith("chat/completions"), fault=fault)
            if behaviour.num_slots is not None and server.num_in_flight >= behaviour.num_slots:
                server.waiting.append(lambda: self._begin_answer(answer, is_stream=bool(body.get("stream"))))
            else:
                self._begin_answer(answer, is_stream=bool(body.get("stream")))

    def _begin_answer(self, answer: _Answer, *, is_stream: bool) -> None:
        server, behaviour = self._server, self._behaviour
        if self._transport.is_closing():  # the client left while it waited
            server.next_waiting()
            return
        self._is_answering = True
        server.num_in_flight += 1
        server.peak_in_flight = max(server.peak_in_flight, server.num_in_flight)
        if is_stream:
            self._start_stream(answer)
        else:
            due = self._loop.time() + behaviour.ttft_s + (answer.num_tokens - 1) * behaviour.itl_s
            self._timer = self._loop.call_at(due, self._send_whole, answer)

    def _end_answer(self) -> None:
        if self._is_answering:
            self._is_answering = False
            self._server.num_in_flight -= 1
            self._server.next_waiting()

    def _send_whole(self, answer: _Answer) -> None:
        self._end_answer()
        if answer.fault == "malformed":
            self._reply(200, {"choices": "none"})
        elif answer.fault in ("drop_mid_stream", "no_finish"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self._transport.close()
        else:
            self._reply(200, answer.whole())

    def _start_stream(self, answer: _Answer) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nServer: pelton-calibration\r\n"
                              b"Transfer-Encoding: chunked\r\n\r\n")
        if answer.is_chat:
            self._send_event(answer.chunk(delta={"role": "assistant", "content": ""}))
        answer.arrived = self._loop.time()
        first_due = answer.arrived + self._behaviour.ttft_s
        self._timer = self._loop.call_at(first_due, self._send_tokens, answer, first_due)

    def _send_event(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        self._transport.write(b"%x\r\n" % len(event) + event + b"\r\n")

    def _send_tokens(self, answer: _Answer, due: float) -> None:
        if answer.fault is not None and answer.num_sent >= answer.num_tokens // 2 and self._misbehave(answer):
            return
        sent = self._loop.time()
        if answer.num_sent == 0:
            answer.first_sent = sent
        self._send_event(answer.next_chunk(self._behaviour.tokens_per_chunk))
        if answer.num_sent < answer.num_tokens:
            due += self._behaviour.itl_s * min(self._behaviour.tokens_per_chunk, answer.num_tokens - answer.num_sent)
            self._timer = self._loop.call_at(due, self._send_tokens, answer, due)
            return
        self._server.kept.add(answer.arrived, answer.first_sent, sent, answer.num_tokens)
        self._send_event(answer.chunk(delta={}, finish_reason="length"))
        if answer.includes_usage:
            self._send_event(answer.usage_chunk())
        self._send_event(b"[DONE]")
        self._transport.write(b"0\r\n\r\n")
        self._end_answer()
        self._close_if_told()

    def _close_if_told(self) -> None:
        if self._behaviour.closes_connections:
            self._transport.close()

    def _misbehave(self, answer: _Answer) -> bool:
        """Does what the fault says in the middle of a stream; True when the answer ends with it."""
        if answer.fault == "hang_mid_stream":
            return True
        if answer.fault == "drop_mid_stream":
            self.abort()
        elif answer.fault == "malformed":
            self._send_event(b'{"choices": [{"delta": ')
            self._transport.write(b"0\r\n\r\n")
        elif answer.fault == "stream_error":
            self._send_event(b'{"error": {"message": "worker lost"}}')
            self._transport.write(b"0\r\n\r\n")
        elif answer.fault == "no_finish":
            self._transport.write(b"0\r\n\r\n")
        else:
            return False
        self._end_answer()
        return True


class _Answer:
    """The text of one request and the JSON it is sent in."""

    def __init__(self, behaviour: Behaviour, body: dict[str, Any], *, is_chat: bool, fault: Fault | None) -> None:
        self.is_chat = is_chat
        self.fault = fault
        self.num_tokens = 0 if fault == "empty" else max(behaviour.num_output(body), 1)
        self._num_reasoning = behaviour.num_reasoning if is_chat else 0
        self.num_sent = 0
        self.arrived = self.first_sent = 0.0  # by the event loop's clock
        self._model = behaviour.model
        num_prompt = behaviour.count_prompt(body)
        self.usage: dict[str, Any] | None = None
        if behaviour.reports_usage:
            self.usage = {"prompt_tokens": num_prompt, "completion_tokens": self.num_tokens,
                          "total_tokens": num_prompt + self.num_tokens}
            if behaviour.cached_tokens is not None:
                self.usage["prompt_tokens_details"] = {"cached_tokens": behaviour.cached_tokens}
        options = body.get("stream_options") or {}
        self.includes_usage = self.usage is not None and bool(options.get("include_usage"))

    def _text(self, start: int, end: int) -> str:
        return "".join(WORDS[k % len(WORDS)] for k in range(start, end))

    def next_chunk(self, num_tokens: int) -> bytes:
        """The chunk with the next tokens, stamped now."""
        start, self.num_sent = self.num_sent, min(self.num_sent + num_tokens, self.num_tokens)
        kind = "reasoning_content" if start < self._num_reasoning else "content"
        return self.chunk(delta={kind: self._text(start, self.num_sent)}, sent_ns=now_ns())

    def chunk(self, *, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        if self.is_chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return msgspec.json.encode({**self._head(".chunk"), "choices": [choice], **extra})

    def usage_chunk(self) -> bytes:
        return msgspec.json.encode({**self._head(".chunk"), "choices": [], "usage": self.usage})

    def _head(self, suffix: str) -> dict[str, Any]:
        """What every object of the protocol begins with; some clients refuse one without."""
        kind = f"chat.completion{suffix}" if self.is_chat else "text_completion"
        return {"id": "calibration", "object": kind, "created": 0, "model": self._model}

    def whole(self) -> dict[str, Any]:
        text = self._text(0, self.num_tokens)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {**self._head(""), "choices": [choice], "usage": self.usage}
