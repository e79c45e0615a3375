"""What a search tried and found."""

from __future__ import annotations

from typing import Literal

from pelton.bench.results.record import Record


class SearchStep(Record):
    """One level that a search tried."""

    level: float
    """Requests in flight, or per second."""
    cell: str
    passed: bool
    """Whether it kept what was asked for; where a knee is searched, whether it lies below the knee."""
    reason: str


class SearchResult(Record):
    """What a search found."""

    variable: Literal["concurrency", "request_rate"]
    criterion: str
    steps: list[SearchStep]
    """In the order in which they were tried."""
    best: float | None
    """Highest level that passed below the lowest that failed, or the knee; none when there is none."""
    least_failed: float | None
    """Lowest level that failed; none when none did."""
    is_settled: bool
    """Whether the search came to its end; otherwise the answer lies between the two, or beyond."""
