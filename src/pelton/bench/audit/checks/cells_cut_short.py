"""Cells with fewer requests than asked for, and cells never run."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.counted import counted
from pelton.bench.results import CellResult, Finding


def check(view: View) -> Iterator[Finding]:
    short = {c.id: _seen(c) for c in view.cells if c.status == "partial"}
    yield from report("cells_cut_short", "warning", short, "Their figures rest on fewer requests than the others'.")
    if view.skipped_cells:
        why = view.stop_reason or "the time budget was spent"
        was_not = "was not" if len(view.skipped_cells) == 1 else "were not"
        yield Finding(name="cells_skipped", severity="warning", cells=list(view.skipped_cells),
                      evidence=f"{counted(len(view.skipped_cells), 'cell')} {was_not} run: {why}",
                      advice="Give a larger duration_budget or fewer cells." if view.stop_reason is None else
                      "Give resume, when the cause is mended, to measure them beside the others.")


def _seen(cell: CellResult) -> str:
    done = (counted(cell.num_done, "request") if cell.num_requests is None else
            f"{cell.num_done} of {counted(cell.num_requests, 'request')}")
    if cell.stop_reason is None:
        return done
    begun = {stage.name for stage in cell.stages}
    missing = [stage.name for stage in cell.load.stages if stage.name not in begun]
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{done}, {cell.stop_reason}" + (f", and stage {missing[0]}{others} never came" if missing else "")
