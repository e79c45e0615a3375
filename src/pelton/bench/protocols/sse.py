"""Server-sent events: bytes with stamps in, events with stamps out.

WHATWG HTML, "Server-sent events": events end at an empty line, lines that begin with a colon are comments, the `data`
lines of one event are joined by newlines. An event's stamp is that of the piece that completed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def _is_plain(piece: bytes) -> bool:
    """Whether a piece is one event of one data line, as nearly all are."""
    return (piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.find(b"\n") == len(piece) - 2
            and b"\r" not in piece)


def read_events(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yields (arrival in ns, data) of every event that has data. An unfinished last event is dropped."""
    rest = b""
    for stamp, piece in pieces:
        if not rest and _is_plain(piece):
            yield stamp, piece[6:-2]
            continue
        rest += piece
        if b"\r" in rest:
            held = rest[-1:] if rest.endswith(b"\r") else b""  # its newline may still be on the way
            rest = rest.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            data = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield stamp, b"\n".join(data)
