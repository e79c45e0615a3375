"""How many stretches of time overlap at most."""

from __future__ import annotations

from collections.abc import Iterable


def peak(stretches: Iterable[tuple[int, int]]) -> int:
    """Most (start, end) at one time; one that ends where another starts is not beside it."""
    stretches = list(stretches)
    edges = sorted([(start, 1) for start, _ in stretches] + [(end, -1) for _, end in stretches])
    at_once = most = 0
    for _, change in edges:  # at equal times ends (-1) sort before starts
        at_once += change
        most = max(most, at_once)
    return most
