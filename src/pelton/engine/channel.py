"""Frames between the server process and an engine process, over a socket pair of which the engine inherits one end.

Whole messages each way, with their length before each. No thread stands between: who sends writes to the socket, and
who waits is woken by it; a queue with threads of its own took half a millisecond more each way. Knows no messages.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pelton.host import has_spare_cores

_LENGTH_BYTES = 4
_READ_BYTES = 2**18
_BUFFER_BYTES = 2**20
LINGER_S = 1.0
"""How long the engine's end waits on closing for its last words to be read."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets with room for the news of some steps."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return pair


def framed(message: bytes) -> bytes:
    """A message as it goes over the socket."""
    return len(message).to_bytes(_LENGTH_BYTES, "little") + message


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes; yields the messages that are whole now."""
        self._rest += data
        start = 0
        while len(self._rest) - start >= _LENGTH_BYTES:
            first = start + _LENGTH_BYTES
            end = first + int.from_bytes(self._rest[start:first], "little")
            if end > len(self._rest):
                break
            yield bytes(self._rest[first:end])
            start = end
        del self._rest[:start]


class ServerEnd(asyncio.Protocol):
    """The server's end, on its event loop.

    Args:
        take: is given each message as it comes.
    """

    def __init__(self, take: Callable[[bytes], None]):
        self._take = take
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    async def open(self, end: socket.socket) -> None:
        """Puts the event loop in charge of a connected socket."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)
        except BaseException:
            end.close()
            raise

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._take(message)

    def send(self, message: bytes) -> None:
        """Sends a message, or queues it; to an engine that is gone, neither."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Peer:
    """One server's connection."""

    def __init__(self, number: int, end: socket.socket):
        self.number = number
        self.end = end
        self.reader = FrameReader()
        self.unsent = bytearray()


class EngineEnd:
    """The engine's ends, one per server, on the thread of its loop. Servers are named by their place in `ends`.

    A send never waits: a server that does not read must not hold up the others. What the socket does not take is kept
    and sent at the next `poll`; the engine's queue limit bounds how much that can be.

    Args:
        spin_s: how long `poll` looks again and again before it sleeps; to be woken takes a tenth of a millisecond.
    """

    def __init__(self, ends: Sequence[socket.socket], *, spin_s: float = 0.0):
        self._spin_s = spin_s
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._selector = selectors.DefaultSelector()
        self._peers = {number: _Peer(number, end) for number, end in enumerate(ends)}
        for peer in self._peers.values():
            peer.end.setblocking(False)
            self._selector.register(peer.end, selectors.EVENT_READ, peer)

    def poll(self, *, wait: bool) -> bool:
        """Whether a message is there, if need be after waiting for one."""
        if wait and not self._inbox and self._spin_s:
            give_up = time.monotonic() + self._spin_s
            while not self._inbox and time.monotonic() < give_up:
                self._turn(0)
        while wait and not self._inbox:
            self._turn(None)
        if not self._inbox:
            self._turn(0)
        return bool(self._inbox)

    def receive(self) -> tuple[int, bytes]:
        """The oldest message and whose it is; `poll` has said that there is one."""
        return self._inbox.popleft()

    def send(self, number: int, message: bytes) -> None:
        """Sends a message to a server; if that is gone, nothing happens."""
        peer = self._peers.get(number)
        if peer is not None:
            peer.unsent += framed(message)
            self._flush(peer)

    def close(self) -> None:
        """Sends what is left to be sent, as far as it is read within LINGER_S, and closes."""
        give_up = time.monotonic() + LINGER_S
        while any(peer.unsent for peer in self._peers.values()) and time.monotonic() < give_up:
            self._turn(LINGER_S / 10)
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()

    def _turn(self, timeout: float | None) -> None:
        for key, events in self._selector.select(timeout):
            if events & selectors.EVENT_WRITE:
                self._flush(key.data)
            if events & selectors.EVENT_READ and key.data.number in self._peers:
                self._read(key.data)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the server is gone; the lifeline ends this process
            self._drop(peer)
            return
        self._inbox.extend((peer.number, message) for message in peer.reader.feed(data))

    def _flush(self, peer: _Peer) -> None:
        try:
            while peer.unsent:
                del peer.unsent[:peer.end.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        if self._selector.get_key(peer.end).events != wanted:
            self._selector.modify(peer.end, wanted, peer)

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.number]
        self._selector.unregister(peer.end)
        peer.end.close()


def spin_seconds() -> float:
    """How long an idle engine may look for work before it sleeps: not at all where processors are few."""
    return 0.02 if has_spare_cores() else 0.0
