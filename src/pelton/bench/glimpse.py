"""What can be seen of an answer at a glance, for whoever watches a load: a few microseconds, and no figure is made of
it."""

from __future__ import annotations

import re

from pelton.bench.client import Exchange

_TEXT = re.compile(rb'"(?:content|text|text_output)": ?"[^"]')
_COUNT = re.compile(rb'"completion_tokens": ?(\d+)')


def is_answer(exchange: Exchange) -> bool:
    """Whether it came in full."""
    return exchange.failure is None and not exchange.was_cancelled and exchange.response.status == 200


def num_tokens(exchange: Exchange) -> int:
    """As the server's usage says, which comes last; without it the pieces of the answer."""
    pieces = exchange.response.pieces
    for _, data in reversed(pieces[-4:]):
        if found := _COUNT.findall(data):
            return int(found[-1])
    return len(pieces)


def ttft_ms(exchange: Exchange) -> float | None:
    """Of a stream, to its first piece with text."""
    if not exchange.response.is_event_stream:
        return None
    first = next((at for at, data in exchange.response.pieces if _TEXT.search(data)), None)
    return None if first is None else (first - exchange.sent_ns) / 1e6


def latency_s(exchange: Exchange) -> float:
    return (exchange.end_ns - exchange.sent_ns) / 1e9
