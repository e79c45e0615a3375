"""What the watching process writes, one line of JSON each."""

from __future__ import annotations

from typing import Literal

import msgspec


class Reading(msgspec.Struct, frozen=True, kw_only=True, tag="reading", forbid_unknown_fields=True):
    """Some values at one time."""

    source: Literal["gpu", "server"]
    at_ns: int
    """On the benchmark's clock (`time.monotonic_ns`), which all processes of the machine share."""
    values: list[tuple[str, str, dict[str, str], float]]
    """(name, unit, labels, value)."""


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag="missing", forbid_unknown_fields=True):
    """Something that cannot be watched, or not any more; why."""

    reason: str


Line = Reading | Missing
