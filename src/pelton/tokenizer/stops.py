"""Finds stop strings in a text that arrives in pieces."""

from __future__ import annotations

from typing import NamedTuple


class StopMatch(NamedTuple):
    """A stop string was met."""

    stop: str
    """The string."""
    num_tokens: int
    """Output tokens up to and including the one that completed it."""


def _borders(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix (Knuth, Morris, Pratt 1977)."""
    borders = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders


class StopMatcher:
    """Runs Knuth-Morris-Pratt for each stop string over the characters: constant work per character and string.

    Which string is found depends on the text alone, not on how it was cut: the one that ends first, and of those that
    end together the longest.
    """

    def __init__(self, stops: tuple[str, ...]):
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)

    @property
    def num_held(self) -> int:
        """Trailing characters of the text so far that may be the beginning of a stop string."""
        return max(self._matched)

    def feed(self, text: str, *, accept: bool = True) -> tuple[str, int] | None:
        """Takes the next characters.

        Args:
            text: what follows the text fed so far.
            accept: False passes over matches (before `min_tokens`).

        Returns:
            (stop string, characters of `text` up to its end) of the first match, None without one.
        """
        matched = self._matched
        for position, char in enumerate(text, 1):
            found = None
            for i, stop in enumerate(self._stops):
                length, borders = matched[i], self._borders[i]
                while length and stop[length] != char:
                    length = borders[length - 1]
                length += stop[length] == char
                if length == len(stop):
                    found = found or stop
                    length = borders[-1]
                matched[i] = length
            if found and accept:
                return found, position
        return None
