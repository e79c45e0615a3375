"""An HTTP/1.1 client that disturbs what it measures as little as it can.

Every read of the socket is stamped before anything else happens, the bytes are kept, and what they mean is worked out
afterwards. Requests leave in one write with Nagle's delay off; there are as many connections as requests in flight,
kept open between them. Proxies in the environment are not used: they would be measured with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pelton.bench.framing import FramingError, Response, ResponseFramer
from pelton.errors import ConfigError, ServerError

CONNECT_TIMEOUT_S = 10.0
SPARE_FILES = 64  # descriptors left for everything but the load's own connections


def now_ns() -> int:
    """The one clock of the benchmark: monotonic, and on Linux the same for all processes of the machine."""
    return time.monotonic_ns()


@dataclass(slots=True)
class Failure:
    """Why an exchange has no full answer: a kind in one word, and a sentence."""

    kind: str
    message: str


@dataclass(slots=True)
class Exchange:
    """One request and what came back: stamps and bytes, nothing interpreted."""

    scheduled_ns: int = 0
    """When the load wanted it sent."""
    sent_ns: int = 0
    connect_ns: int = 0
    end_ns: int = 0
    response: Response = field(default_factory=Response)
    failure: Failure | None = None
    was_resent: bool = False
    """Sent a second time, because the connection of the first closed without a byte of answer."""
    was_cancelled: bool = False
    """Given up on purpose in the middle of the answer."""
    worker: int = 0
    """The client process that sent it."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    is_tls: bool
    base_path: str
    """Path all routes begin with, ending in /v1."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads http(s)://host[:port][/path]; the scheme may be left out, /v1 is added when missing.

        Raises:
            ConfigError: it is no such address.
        """
        text = url.strip() if "://" in url else f"http://{url.strip()}"
        want = "url must look like http://127.0.0.1:8000"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{want}, got {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in text):
            raise ConfigError(f"{want}, got {url!r}")
        if parts.username or parts.query or parts.fragment:
            raise ConfigError(f"{want} without user, query or fragment, got {url!r}; keys go into api_key")
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/")
        return cls(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls,
                   base_path=path if path.endswith("/v1") else f"{path}/v1")

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address without /v1."""
        return f"http{'s' if self.is_tls else ''}://{self.authority}{self.base_path.removesuffix('/v1')}"


class _Connection(asyncio.Protocol):
    """One open connection; at most one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._framer: ResponseFramer | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._events_left: int | None = None
        self.is_open = False
        self.num_exchanges = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        now = now_ns()
        if self._framer is None:
            self.close()  # bytes nobody asked for
            return
        try:
            if self._framer.take(now, data):
                self._finish(now, None)
            elif self._events_left is not None:
                self._events_left -= data.count(b"\ndata:")
                if self._events_left <= 0:
                    self.cancel(now)
        except FramingError as error:
            self._finish(now, Failure("protocol", f"not a valid HTTP/1.1 response: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._framer is None:
            return
        now = now_ns()
        if error is None and self._framer.end_of_connection():
            self._finish(now, None)
        else:
            self._finish(now, Failure("dropped", "the server closed the connection before the answer's end"))

    async def exchange(self, request: bytes, exchange: Exchange, cancel_after_events: int | None) -> None:
        """Sends one request and waits until its response, a failure or the caller's patience ends."""
        self._done = asyncio.get_running_loop().create_future()
        self._events_left = cancel_after_events
        self._framer, self._exchange = ResponseFramer(), exchange
        exchange.response = self._framer.response
        exchange.sent_ns = now_ns()
        self._transport.write(request)
        self.num_exchanges += 1
        await self._done

    def give_up(self, failure: Failure) -> None:
        """Ends the running exchange with a failure."""
        if self._framer is not None:
            self._finish(now_ns(), failure)

    def cancel(self, now: int | None = None) -> None:
        """Gives up the running exchange on purpose."""
        if self._framer is not None:
            self._exchange.was_cancelled = True
            self._finish(now_ns() if now is None else now, None)
            self.close()

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, now: int, failure: Failure | None) -> None:
        exchange, done = self._exchange, self._done
        with contextlib.suppress(FramingError):  # of an answer that did not end as it should
            self._framer.cut()
        self._framer = self._exchange = self._done = None
        exchange.end_ns, exchange.failure = now, failure
        if failure is not None or not exchange.response.keeps_alive:
            self.close()
        if not done.done():
            done.set_result(None)


class Client:
    """Sends requests to one server, each on a free open connection or else on a new one."""

    def __init__(self, address: Address, *, headers: dict[str, str], timeout_s: float) -> None:
        self.address = address
        self.headers = headers
        self.timeout_s = timeout_s
        lines = {"Host": address.authority, "Accept-Encoding": "identity", "User-Agent": "pelton-bench", **headers}
        for name, value in lines.items():
            if any(c in value for c in "\r\n"):
                raise ConfigError(f"{name} must be one line")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._tls = ssl.create_default_context() if address.is_tls else None
        self._free: list[_Connection] = []
        self.num_in_flight = 0

    def build(self, method: str, route: str, body: bytes | None = None) -> bytes:
        """The bytes of a request; `route` follows the base path, or is absolute when it begins with //."""
        path = route[1:] if route.startswith("//") else f"{self.address.base_path}{route}"
        head = f"{method} {path} HTTP/1.1\r\n".encode() + self._head
        if body is None:
            return head + b"\r\n"
        return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def send(self, request: bytes, *, timeout_s: float | None = None, cancel_after_events: int | None = None,
                   cancel_after_ns: int | None = None) -> Exchange:
        """Sends one built request and collects its answer. Failures are recorded in it, never raised.

        Args:
            cancel_after_events: give the request up when so many events of its stream have arrived.
            cancel_after_ns: give it up so long after sending.
        """
        cancel = cancel_after_events, cancel_after_ns
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        exchange = Exchange()
        connection = self._take_free()
        if connection is None and (connection := await self._open(exchange, timeout_s)) is None:
            return exchange
        is_reused = connection.num_exchanges > 0
        await self._run(connection, request, exchange, timeout_s, cancel)
        was_dropped = exchange.failure is not None and exchange.failure.kind == "dropped"
        if not (is_reused and was_dropped and exchange.response.first_byte_ns is None):
            return exchange
        # Most likely the server closed an idle connection just as we wrote to it. If not, the audit still tells.
        retry = Exchange(was_resent=True)
        if (connection := await self._open(retry, timeout_s)) is not None:
            await self._run(connection, request, retry, timeout_s, cancel)
            retry.connect_ns = retry.sent_ns - exchange.sent_ns
        return retry

    async def _run(self, connection: _Connection, request: bytes, exchange: Exchange, timeout_s: float,
                   cancel: tuple[int | None, int | None]) -> None:
        loop, (after_events, after_ns) = asyncio.get_running_loop(), cancel
        if after_ns is not None and after_ns / 1e9 < timeout_s:
            timer = loop.call_later(after_ns / 1e9, connection.cancel)
        else:
            late = Failure("timeout", f"no full answer within {timeout_s:g} s")
            timer = loop.call_later(timeout_s, connection.give_up, late)
        self.num_in_flight += 1
        try:
            await connection.exchange(request, exchange, after_events)
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self.num_in_flight -= 1
            timer.cancel()
        if connection.is_open:
            self._free.append(connection)

    def _take_free(self) -> _Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        return None

    async def _open(self, exchange: Exchange, timeout_s: float) -> _Connection | None:
        start = now_ns()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, timeout_s)):
                _, connection = await loop.create_connection(_Connection, self.address.host, self.address.port,
                                                             ssl=self._tls)
        except TimeoutError:
            failure = Failure("connect", "connection not accepted in time")
        except ssl.SSLError as error:
            failure = Failure("connect", f"TLS failed: {error.reason or error}")
        except OSError as error:
            failure = Failure("connect", _plain(error))
        else:
            exchange.connect_ns = now_ns() - start
            return connection
        exchange.sent_ns, exchange.end_ns, exchange.failure = start, now_ns(), failure
        return None

    async def open_connections(self, count: int) -> None:
        """Opens connections until `count` are free, so that no measured request waits for one. Failures show later."""
        missing = count - len(self._free)
        if missing > 0:
            opened = await asyncio.gather(*(self._open(Exchange(), CONNECT_TIMEOUT_S) for _ in range(missing)))
            self._free += [connection for connection in opened if connection is not None]

    def close(self) -> None:
        """Closes all idle connections."""
        while self._free:
            self._free.pop().close()


def check_reachable(address: Address) -> None:
    """Connects once, so that nothing is prepared for a server that is not there.

    Raises:
        ServerError: it takes no connection.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S).close()
    except TimeoutError:
        reason = "connection not accepted in time"
    except OSError as error:
        reason = _plain(error)
    else:
        return
    raise ServerError(f"cannot reach {address.url}: {reason}; check url and that the server is running")


def _plain(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused"  # asyncio joins the refusals of a name's several addresses into one plain OSError
    if isinstance(error, socket.gaierror):
        return "host name not found"
    return error.strerror or str(error)


def allow_connections(count: int) -> None:
    """Raises this process's soft limit of open files where `count` connections need it.

    Raises:
        ConfigError: the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(f"concurrency {count} needs {needed} open files and the hard limit is {hard}; raise it "
                          "(ulimit -Hn) or lower the concurrency")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
