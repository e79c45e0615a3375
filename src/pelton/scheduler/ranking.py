"""Who goes first: priority, then arrival, in one order that never changes while a sequence lives.

A level of priority is worth AGING_S seconds of earlier arrival. Since all who wait age alike, the order between two
sequences is fixed when they arrive and no clock is read later. It is also why nobody starves: a sequence can only be
overtaken by what arrives within AGING_S times the difference in priority, the first in order is admitted before those
behind it and is never preempted for them, and a preempted one goes back to its old place.
"""

from __future__ import annotations

import bisect
from operator import attrgetter

from pelton.types import Request, Sequence

AGING_S = 60.0
"""Seconds of waiting that make up for one level of priority."""

_rank = attrgetter("rank")


def rank(request: Request, arrival: int, index: int) -> tuple[float, int, int]:
    """The sort key of completion `index` of a request that was the `arrival`-th to come; lower goes first."""
    return (request.arrival_time - AGING_S * request.priority, arrival, index)


def insert(sequences: list[Sequence], seq: Sequence) -> None:
    """Adds a sequence to a list in rank order."""
    bisect.insort(sequences, seq, key=_rank)


def remove(sequences: list[Sequence], seq: Sequence) -> None:
    """Takes a sequence out of a list in rank order."""
    place = bisect.bisect_left(sequences, seq.rank, key=_rank)
    assert sequences[place] is seq, f"{seq.key} is not where its rank says"
    del sequences[place]
