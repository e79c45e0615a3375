"""A search that ended at a level which may have failed by the client's own lags."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding

MAX_MISSED = 10.0  # percent of the requests under the share asked for; lags that few wake-ups have explain no more


def check(view: View) -> Iterator[Finding]:
    if view.search is None:
        return
    cells = {cell.id: cell for cell in view.cells}
    late = {}
    for step in view.search.steps:
        found, cell = step.evidence, cells.get(step.cell)
        if step.level != view.search.least_failed or found is None or cell is None:
            continue
        if found.wanted - found.share <= MAX_MISSED and (seen := _lags(cell, view.analysis.goodput)):
            num_outside = found.num_requests - found.num_within
            late[cell.id] = f"{num_outside:,} of {found.num_requests:,} requests outside the targets; {seen}"
    yield from report(
        "search_client_late", "warning", late,
        "The level that ended the search may have failed by the client and not by the server: give the client a core "
        "of its own, or targets with more room for it, and search again.")


def _lags(cell: CellResult, targets: dict[str, float]) -> str:
    """Whether a hundredth of the client's wake-ups came so late as to make a usual answer miss a target."""
    if cell.client is None or cell.client.loop_lag_p99_us is None:
        return ""
    lag_ms = cell.client.loop_lag_p99_us / 1e3
    for metric, limit_ms in targets.items():
        latency = None if metric == "tpot" else cell.distribution(metric)
        if latency is not None and 0 < limit_ms - latency.p50 <= lag_ms:
            return (f"the client woke up to {lag_ms:,.1f} ms late (P99), and half of all {metric} left it no more than "
                    f"{limit_ms - latency.p50:,.1f} ms of {limit_ms:g}")
    return ""
