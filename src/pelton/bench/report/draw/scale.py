"""From an axis of a figure to places along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Value = float | str


class Scale:
    """Values of one axis to 0..1, and its ticks."""

    def __init__(self, axis: dict[str, Any], values: Sequence[Value]) -> None:
        self.title: str = axis["title"]["text"]
        self.kind: str = axis.get("type", "linear")
        self._names = list(dict.fromkeys(values)) if self.kind == "category" else []
        if self._names:
            self._low, self._high = -0.5, len(self._names) - 0.5
            self.ticks = [(name, str(name)) for name in self._names]
        elif self.kind == "log":
            self._low, self._high = axis["range"]
            self.ticks = list(zip(axis["tickvals"], axis["ticktext"]))
        else:
            numbers = [v for v in values if v is not None] or [0.0]
            self._low, self._high = axis.get("range") or (min(0.0, *numbers), 1.06 * max(numbers) or 1.0)
            steps = nice_ticks(self._low, self._high, axis.get("nticks", 7))
            self.ticks = [(v, f"{v:,g}") for v in steps]

    def place(self, value: Value) -> float:
        if self._names:
            value = self._names.index(value)
        elif self.kind == "log":
            value = math.log10(max(value, 10 ** (self._low - 9)))
        return (value - self._low) / ((self._high - self._low) or 1.0)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round values between two, a step of 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
