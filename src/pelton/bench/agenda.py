"""What a run measures next: a fixed list of trials, or whatever the cells so far suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pelton.bench.cell import CellSpec
from pelton.bench.results import CellResult, LoadSpec, SearchResult

Cells = Mapping[str, CellResult]


class Agenda(Protocol):
    """Decides about the next trial from the cells measured so far; it measures nothing itself."""

    expects_failures: bool
    """Whether a server that fails a whole cell ends the run only when it cannot be reached any more."""

    goes_back: bool
    """Whether a trial that a time budget cut short is measured again at the end, if there is time left then."""

    def upcoming(self, cells: Cells) -> list[tuple[int, CellSpec]]:
        """(trial, cell) of the trials to come, the next one first; empty at the end. Those after the next may be
        guesses, by which a time budget is shared."""
        ...

    def loads(self) -> list[LoadSpec]:
        """Every load that may come, the heaviest included."""
        ...

    def missing(self, cells: Cells) -> list[str]:
        """Ids of the cells that were asked for and never measured."""
        ...

    def conclude(self, cells: Cells) -> SearchResult | None:
        """What a search has found with these cells; none for a list."""
        ...


class FixedAgenda:
    """All trials of these cells, the cells of each trial one after another."""

    expects_failures = False
    goes_back = True

    def __init__(self, specs: Sequence[CellSpec], *, num_trials: int) -> None:
        self._todo = [(trial, spec) for trial in range(num_trials) for spec in specs]
        self._specs = specs

    def upcoming(self, cells: Cells) -> list[tuple[int, CellSpec]]:
        return [(trial, spec) for trial, spec in self._todo
                if spec.id not in cells or cells[spec.id].num_trials <= trial]

    def loads(self) -> list[LoadSpec]:
        found: list[LoadSpec] = []
        for spec in self._specs:
            if spec.load not in found:
                found.append(spec.load)
        return found

    def missing(self, cells: Cells) -> list[str]:
        return [spec.id for spec in self._specs if spec.id not in cells]

    def conclude(self, cells: Cells) -> None:
        return None
