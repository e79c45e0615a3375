"""Series that were watched in parts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pelton.bench.results import Series


def join_series(series: Sequence[Series]) -> list[Series]:
    """Parts of the same series one after another."""
    found: dict[tuple[object, ...], Series] = {}
    for part in series:
        key = (part.source, part.name, *sorted(part.labels.items()))
        if key in found:
            part = msgspec.structs.replace(part, at_us=found[key].at_us + part.at_us,
                                           values=found[key].values + part.values)
        found[key] = part
    return list(found.values())
