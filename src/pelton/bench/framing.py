"""Cuts the bytes of an HTTP/1.1 connection into one response, keeping the arrival stamp of every piece of its body.

It knows framing (RFC 9112) only: head, Content-Length, chunked coding, end of connection. What the body says is read
later, when no request is waiting.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 64 * 1024


class FramingError(Exception):
    """The bytes are not an HTTP/1.1 response."""


@dataclass(slots=True)
class Response:
    """One response: its head and the stamped pieces of its body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; of repeated ones the last."""
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    """(arrival in ns, bytes) in order, chunked coding removed."""
    first_byte_ns: int | None = None
    keeps_alive: bool = True

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"


class _Part(enum.Enum):
    HEAD = enum.auto()
    LENGTH = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK_DATA = enum.auto()
    TRAILER = enum.auto()
    UNTIL_CLOSE = enum.auto()
    DONE = enum.auto()


_CHUNKED = (_Part.CHUNK_SIZE, _Part.CHUNK_DATA, _Part.TRAILER)


class ResponseFramer:
    """Takes the bytes of one response as they arrive."""

    def __init__(self) -> None:
        self.response = Response()
        self._part = _Part.HEAD
        self._rest = b""
        self._uncut: list[tuple[int, bytes]] = []
        self._left = 0  # bytes of body (LENGTH) or of chunk and its CRLF (CHUNK_DATA) still to come

    @property
    def is_done(self) -> bool:
        return self._part is _Part.DONE

    def take(self, now_ns: int, data: bytes) -> bool:
        """As feed, but a chunked body is left uncut until bytes arrive that may be its end.

        An event stream is read in many small pieces, and cutting each would keep other sockets waiting.

        Raises:
            FramingError: see feed; it may come later than there.
        """
        # The last chunk or trailer ends in an empty line; a piece shorter than that line may be its second half.
        if self._part in _CHUNKED and len(data) >= 4 and data[-4:] != b"\r\n\r\n":
            self._uncut.append((now_ns, data))
            return False
        self.cut()
        return self.feed(now_ns, data)

    def cut(self) -> None:
        """Cuts what `take` has left uncut.

        Raises:
            FramingError: see feed.
        """
        uncut, self._uncut = self._uncut, []
        for stamp, piece in uncut:
            self.feed(stamp, piece)

    def feed(self, now_ns: int, data: bytes) -> bool:
        """Takes bytes that arrived at `now_ns`; True when the response is whole.

        Raises:
            FramingError: the bytes are not HTTP/1.1, or more follow the response's end.
        """
        if self.response.first_byte_ns is None:
            self.response.first_byte_ns = now_ns
        if self._rest:
            data, self._rest = self._rest + data, b""
        if self._part is _Part.HEAD:
            data = self._feed_head(data)
        if self._part is _Part.LENGTH:
            data = self._feed_length(now_ns, data)
        elif self._part is _Part.UNTIL_CLOSE:
            if data:
                self.response.pieces.append((now_ns, data))
        elif self._part is not _Part.HEAD:
            data = self._feed_chunked(now_ns, data)
        if self.is_done and data:
            raise FramingError("bytes after the end of the response")
        return self.is_done

    def end_of_connection(self) -> bool:
        """The server closed the connection; True when that properly ends the response."""
        return self.is_done or self._part is _Part.UNTIL_CLOSE

    def _feed_head(self, data: bytes) -> bytes:
        while self._part is _Part.HEAD:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
                    raise FramingError("no HTTP/1.1 response head")
                self._rest = data
                return b""
            head, data = data[:end], data[end + 4:]
            self._read_head(head)
        return data

    def _read_head(self, head: bytes) -> None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit():
            raise FramingError(f"bad status line {status_line[:80]!r}")
        status = int(rest[:3])
        if 100 <= status < 200:
            return  # an interim response; the final head follows
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        response = self.response
        response.status, response.headers = status, headers
        connection = headers.get("connection", "").lower()
        response.keeps_alive = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        if status in (204, 304):
            self._part = _Part.DONE
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._part = _Part.CHUNK_SIZE
        elif "content-length" in headers:
            if not headers["content-length"].isdigit():
                raise FramingError(f"bad Content-Length {headers['content-length'][:40]!r}")
            self._left = int(headers["content-length"])
            self._part = _Part.LENGTH if self._left else _Part.DONE
        else:
            self._part = _Part.UNTIL_CLOSE
            response.keeps_alive = False

    def _feed_length(self, now_ns: int, data: bytes) -> bytes:
        piece = data[: self._left]
        if piece:
            self.response.pieces.append((now_ns, piece))
            self._left -= len(piece)
        if not self._left:
            self._part = _Part.DONE
        return data[len(piece):]

    def _feed_chunked(self, now_ns: int, data: bytes) -> bytes:
        at = self._take_whole_chunks(now_ns, data)
        while self._part is not _Part.DONE:
            if self._part is _Part.CHUNK_DATA:
                available = len(data) - at
                if available <= 0:
                    return b""
                taken = min(available, self._left)
                num_body = min(taken, self._left - 2)  # the chunk's closing CRLF is not body
                if num_body > 0:
                    self.response.pieces.append((now_ns, data[at : at + num_body]))
                at, self._left = at + taken, self._left - taken
                if not self._left:
                    self._part = _Part.CHUNK_SIZE
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > MAX_HEAD_BYTES:
                    raise FramingError("endless chunk head")
                self._rest = data[at:]
                return b""
            line, at = data[at:end], end + 2
            self._read_chunk_line(line)
        return data[at:]

    def _take_whole_chunks(self, now_ns: int, data: bytes) -> int:
        """Takes the plain chunks that lie whole in `data`, the usual case, with little work; returns where it ended."""
        at, pieces, length = 0, self.response.pieces, len(data)
        while self._part is _Part.CHUNK_SIZE:
            end = data.find(b"\r\n", at)
            try:
                size = int(data[at:end], 16) if end > 0 else 0
            except ValueError:  # an extension, or no chunk at all
                break
            if size <= 0 or end + size + 4 > length:
                break
            pieces.append((now_ns, data[end + 2 : end + 2 + size]))
            at = end + size + 4
        return at

    def _read_chunk_line(self, line: bytes) -> None:
        if self._part is _Part.TRAILER:
            if not line:
                self._part = _Part.DONE
            return
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise FramingError(f"bad chunk size {line[:40]!r}") from None
        if size < 0:
            raise FramingError(f"bad chunk size {line[:40]!r}")
        self._part = _Part.CHUNK_DATA if size else _Part.TRAILER
        self._left = size + 2 if size else 0
