"""The client itself was the limit, or its clock cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding

MAX_CPU_SHARE = 0.9
MAX_ERROR_SHARE = 0.1  # of the measured figure
MAX_CLOCK_JUMP_US = 10_000


def check(view: View) -> Iterator[Finding]:
    watched = [c for c in view.cells if c.client is not None and c.num_done]
    busy = {c.id: f"a client process used {max(c.client.cpu_share):.0%} of a core"
            for c in watched if max(c.client.cpu_share, default=0.0) > MAX_CPU_SHARE}
    yield from report(
        "client_cpu_bound", "failure", busy,
        "The client measured itself: answers waited to be read. Give it more workers or a faster or quieter machine.")
    off = {c.id: text for c in watched if (text := _error(c)) is not None}
    yield from report(
        "client_error_large", "warning", off,
        "The client's own error is a tenth of what was measured, or more. Use a quieter machine, more workers or "
        "fewer streams; differences of this size mean nothing.")
    jumped = {c.id: f"the wall clock moved by {c.client.clock_jump_us / 1e3:,.0f} ms against the monotonic one"
              for c in watched if abs(c.client.clock_jump_us) > MAX_CLOCK_JUMP_US}
    yield from report(
        "clock_jumped", "warning", jumped,
        "The clock was set, or the machine slept or was moved. Times here come from the monotonic clock, which does "
        "not jump but stands still while a machine sleeps; measure these cells again.")


def _error(cell: CellResult) -> str | None:
    own = cell.client.calibration
    ttft, itl = cell.distribution("ttft"), cell.distribution("itl")
    if own is None:
        return None
    for name, measured, error_us in (("time to first token", ttft, own.ttft_p50_us),
                                     ("inter-token latency", itl, own.itl_p50_us)):
        if measured is not None and error_us / 1e3 > MAX_ERROR_SHARE * measured.p50:
            return f"the client's error in {name} is {error_us / 1e3:.2f} ms, of {measured.p50:.2f} ms measured"
    return None
