"""A result as the checks read it, and the findings they make of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from pelton.bench.audit.limits import make_roofline
from pelton.bench.counted import counted
from pelton.bench.results import CellResult, Finding, RequestRecord, RunResult
from pelton.physics import Roofline


class View:
    """A result with its measured requests by cell."""

    def __init__(self, result: RunResult) -> None:
        self.cells = result.cells
        self.target = result.target
        self.workload = result.workload
        self.analysis = result.analysis
        self.skipped_cells = result.skipped_cells
        self.stop_reason = result.stop_reason
        self.search = result.search
        self.is_offline = result.target.endpoint == "offline"
        """Measured in this process: there is no server, no client, and other options."""
        self._measured: dict[str, list[RequestRecord]] = defaultdict(list)
        for record in result.requests:
            if not record.is_warmup:
                self._measured[record.cell].append(record)

    @cached_property
    def roofline(self) -> Roofline | None:
        """The served model on its hardware; none when either is not known."""
        return None if self.analysis.hardware is None else make_roofline(self.analysis.hardware)

    def measured(self, cell: CellResult) -> list[RequestRecord]:
        return self._measured[cell.id]

    def good(self, cell: CellResult) -> list[RequestRecord]:
        """Measured requests that were answered in full."""
        return [r for r in self._measured[cell.id] if r.is_ok]


def report(name: str, severity: str, evidence: Mapping[str, str], advice: str) -> Iterator[Finding]:
    """One finding about the cells that have evidence, {cell id: what was seen}; none without any."""
    if evidence:
        yield Finding(name=name, severity=severity, cells=list(evidence), advice=advice,
                      evidence=join([f"{cell}: {seen}" for cell, seen in evidence.items()]))


def join(items: Sequence[str], most: int = 4) -> str:
    """At most `most` items and how many more there are."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")


def spread(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def spread_of(counts: Sequence[int], noun: str) -> str:
    """1 token, 2 tokens, 1 to 2 tokens."""
    return counted(counts[0], noun) if min(counts) == max(counts) else f"{spread(counts)} {noun}s"


def failures(errors: Mapping[str, int], num_done: int) -> str:
    """How many requests failed, and by which kinds."""
    kinds = ", ".join(f"{n} × {kind}" for kind, n in sorted(errors.items()))
    return f"{sum(errors.values())} of {num_done} failed ({kinds})"
