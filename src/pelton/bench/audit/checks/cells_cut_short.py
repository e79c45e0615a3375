"""Cells with fewer requests than asked for, and cells never run."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    short = {c.id: f"{c.num_done}{'' if c.num_requests is None else f' of {c.num_requests}'} requests"
                   + (f", {c.stop_reason}" if c.stop_reason else "") for c in view.cells if c.status == "partial"}
    yield from report("cells_cut_short", "warning", short, "Their figures rest on fewer requests than the others'.")
    if view.skipped_cells:
        why = view.stop_reason or "the time budget was spent"
        yield Finding(name="cells_skipped", severity="warning", cells=list(view.skipped_cells),
                      evidence=f"{len(view.skipped_cells)} cells were not run: {why}",
                      advice="Give a larger duration_budget or fewer cells." if view.stop_reason is None else
                      "Give resume, when the cause is mended, to measure them beside the others.")
