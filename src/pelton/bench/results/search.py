"""What a search tried and found."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.record import Record


class Evidence(Record, kw_only=True):
    """What the requests of a level say of the share that keeps the latency targets."""

    num_within: int
    num_requests: int
    """Of all trials of the level, those that the client gave up left out."""
    wanted: float
    """Percent of the requests that must be within the targets."""
    low: float
    """Lower end of the share's interval of 90 % (Clopper and Pearson), in percent."""
    high: float
    is_decided: bool
    """Whether the wanted share lies outside the interval."""
    num_to_tell: int | None = None
    """About how many requests with the same share within the targets would decide; none where no number would."""

    @property
    def share(self) -> float:
        """In percent."""
        return 100 * self.num_within / self.num_requests


class SearchStep(Record):
    """One level that a search tried."""

    level: float
    """Requests in flight, or per second."""
    cell: str
    passed: bool
    """Whether it kept what was asked for; where a knee is searched, whether it lies at the knee or below."""
    reason: str
    evidence: Evidence | None = None
    """None where the search has no targets, or something else decided."""


class SearchResult(Record):
    """What a search found."""

    variable: Literal["concurrency", "request_rate"]
    criterion: str
    steps: list[SearchStep]
    """In the order in which they were tried."""
    best: float | None
    """Highest level that passed below the lowest that failed, or the knee; none when there is none."""
    least_failed: float | None
    """Lowest level that failed, or of those above the knee; none when none did."""
    is_settled: bool
    """Whether the search came to its end; otherwise the answer lies between the two, or beyond."""
    undecided: list[float] = msgspec.field(default_factory=list)
    """Which of the two were judged by the share that was measured though its interval holds the one that was wanted;
    if they were judged wrongly the answer is another."""

    @property
    def caveat(self) -> str:
        """What keeps the answer from being sure, in words; empty where nothing does."""
        found = [] if self.is_settled else ["the search had not come to its end"]
        if self.undecided:
            found.append(f"its requests do not decide {' and '.join(f'{level:.4g}' for level in self.undecided)}")
        return ", ".join(found)

    def outcome(self, step: SearchStep) -> str:
        """Of one level, in a word or two."""
        return ("passed" if step.passed else "did not") + (", undecided" if step.level in self.undecided else "")
