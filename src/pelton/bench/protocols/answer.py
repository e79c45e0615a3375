"""What an exchange says, whatever protocol it was in, and the reading that all protocols share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pelton.bench.client import Exchange, Failure


@dataclass(slots=True)
class Answer:
    """What an exchange says."""

    text: str = ""
    content_ns: list[int] = field(default_factory=list)
    """Arrival of each chunk with text, reasoning included (streaming only)."""
    num_first_chars: int = 0
    """Characters of the text that arrived first, all that one read of the socket brought (streaming only)."""
    first_chunk_ns: int | None = None
    """Arrival of the first event, with text or without."""
    first_reasoning_ns: int | None = None
    first_content_ns: int | None = None
    """Arrival of the first text that is no reasoning."""
    num_chunks: int = 0
    """Events, with text or without."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    failure: Failure | None = None

    def count_chunk(self, stamp: int) -> None:
        """Another event, with text or without."""
        self.num_chunks += 1
        if self.first_chunk_ns is None:
            self.first_chunk_ns = stamp

    def stamp_text(self, stamp: int, reasoning: str, content: str) -> None:
        """Text of one kind or both that came with an event."""
        if reasoning or content:
            self.content_ns.append(stamp)
            if stamp == self.content_ns[0]:
                self.num_first_chars += len(reasoning) + len(content)
        if reasoning and self.first_reasoning_ns is None:
            self.first_reasoning_ns = stamp
        if content and self.first_content_ns is None:
            self.first_content_ns = stamp


def begin_answer(exchange: Exchange) -> Answer:
    """An answer with the exchange's failure, or with that of a status other than 200."""
    response, answer = exchange.response, Answer(failure=exchange.failure)
    if answer.failure is None and response.status not in (0, 200):
        answer.failure = Failure(f"http_{response.status}", f"status {response.status}: {error_text(response.body)}")
    return answer


def has_body(exchange: Exchange, *, stream: bool) -> bool:
    """Whether there is an answer to read; of a stream also what came before a failure."""
    return exchange.response.status in (0, 200) and (stream or exchange.failure is None)


def error_text(body: bytes) -> str:
    """The message of an error answer on one line, whatever its shape."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:300] or "no message"


_objects = msgspec.json.Decoder(dict[str, Any])


def read_object(data: bytes) -> dict[str, Any]:
    """Raises ValueError when the bytes are no JSON object."""
    try:
        return _objects.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(str(error)) from None


def read_count(row: dict[str, Any], key: str) -> int | None:
    """A count that may be missing, alone or in a list of one.

    Raises:
        ValueError: it is something else.
    """
    value = row.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r}")
    return value


def read_lines(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(arrival in ns, line) of newline-delimited JSON; the last line may lack its newline."""
    rest, stamp = b"", 0
    for stamp, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield stamp, line
    if rest.strip():
        yield stamp, rest
