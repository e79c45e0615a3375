"""A number with its noun, in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """1 cell, 2 cells, 1,024 cells."""
    return f"{number:,} {noun}{'' if abs(number) == 1 else 's'}"
