"""A result as the report reads it."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from pelton.bench.audit import verdicts
from pelton.bench.audit.limits import make_roofline
from pelton.bench.counted import counted
from pelton.bench.results import CellResult, RequestRecord, RunResult
from pelton.physics import Roofline


class ReportView:
    """A result with its verdicts, and its requests by cell."""

    def __init__(self, result: RunResult) -> None:
        self.result = result
        self.verdicts = verdicts(result)
        self.cells = sorted(result.cells, key=lambda c: (c.requested_prompt_tokens, c.requested_output_tokens,
                                                         c.load.order))
        self._requests: dict[str, list[RequestRecord]] = defaultdict(list)
        for record in result.requests:
            self._requests[record.cell].append(record)

    @property
    def streamed(self) -> list[CellResult]:
        """The cells that plots of latency are about: those that streamed, or all where none did."""
        return [c for c in self.cells if c.is_stream] or self.cells

    @cached_property
    def has_output_sizes(self) -> bool:
        """Whether cells differ in the output length asked for."""
        return len({c.requested_output_tokens for c in self.cells}) > 1

    @cached_property
    def roofline(self) -> Roofline | None:
        """The served model on its hardware; none when either is not known."""
        hardware = self.result.analysis.hardware
        return None if hardware is None else make_roofline(hardware)

    def failed(self, cell: CellResult) -> bool:
        """Whether the audit says that its figures do not mean what they seem to."""
        return self.verdicts[cell.id] == "failed"

    def requests(self, cell: CellResult) -> list[RequestRecord]:
        """All of the cell, warm-up included."""
        return self._requests[cell.id]

    def good(self, cell: CellResult) -> list[RequestRecord]:
        """Measured requests that were answered in full."""
        return [r for r in self._requests[cell.id] if r.is_ok and not r.is_warmup]

    def shape(self, cell: CellResult) -> str:
        """The sizes a cell asks for, in words."""
        if not cell.has_fixed_sizes:
            return f"mixed sizes, {counted(cell.requested_prompt_tokens, 'token')} in on average"
        return f"{counted(cell.requested_prompt_tokens, 'token')} in" + (
            f", {cell.requested_output_tokens:,} out" if self.has_output_sizes else "")
