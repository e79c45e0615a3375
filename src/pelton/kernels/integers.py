"""Integer arithmetic for launches: Triton's functions of these names, made for kernels, take microseconds a call."""

from __future__ import annotations


def ceil_div(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The least power of two that is at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()
