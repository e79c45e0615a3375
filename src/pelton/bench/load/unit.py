"""What a loop starts: a single request or a conversation."""

from __future__ import annotations

from typing import Protocol


class Unit(Protocol):
    """Something with a place in time."""

    is_warmup: bool
    due_ns: int | None
    """Since the load's start (open loops)."""
    stage: str | None
    """The stage of a piecewise load in which it starts."""
