"""The client stood still: what it measured meanwhile is its own time, and not the server's.

A stall ends with a burst: what the server had sent long before is stamped, what was due is sent. How much of a latency
was the server's nobody knows; at the least it was what is left without the time in which the client stood still. Where
a percentile of these is clearly below the one shown, the client may have made the difference.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pelton.bench.audit.view import View, report
from pelton.bench.percentiles import num_samples_needed, percentile
from pelton.bench.results import CellResult, Finding, RequestRecord, Stall

SHOWN = (50, 95, 99)
MAX_MOVED_SHARE = 0.1  # of a percentile, as for the client's calibrated error; no stall is below 150 ms
MAX_TIME_SHARE = 0.1  # of the cell's time: its throughput may be as far off
MIN_GRAVE_MS = 500.0  # below it a cell of a second or two would fail for one hiccup of a busy machine


def check(view: View) -> Iterator[Finding]:
    found: dict[str, dict[str, str]] = {"failure": {}, "warning": {}}
    for cell in view.cells:
        if cell.client is None or not cell.client.stalls or not view.good(cell):
            continue
        seen = _Standstill(cell, view.measured(cell))
        moved = seen.moved(view.good(cell))
        is_long = seen.time_share > MAX_TIME_SHARE
        if is_long or moved:
            is_grave = is_long and seen.total_ms >= MIN_GRAVE_MS
            most = sorted(moved, key=lambda each: each.shown_ms / max(each.least_ms, 1e-3))[-1:]
            found["failure" if is_grave else "warning"][cell.id] = "; ".join([seen.text, *map(str, most)])
    for severity, evidence in found.items():
        yield from report(
            "client_stalled", severity, evidence,
            "The client neither sent nor read meanwhile, so its own time is in the latencies, and missing from the "
            "throughput. Measure again on a quieter machine, or with fewer things beside the client.")


@dataclass(frozen=True)
class _Moved:
    """A percentile that would be clearly lower without the stalls."""

    name: str
    percent: int
    shown_ms: float
    least_ms: float

    def __str__(self) -> str:
        return f"P{self.percent} of the {self.name} is {self.shown_ms:,.1f} ms, less that time {self.least_ms:,.1f} ms"


class _Standstill:
    """When the client processes of a cell stood still, within the time of its measured requests."""

    def __init__(self, cell: CellResult, measured: Sequence[RequestRecord]) -> None:
        self._is_open_loop = not cell.load.is_closed
        spans: dict[int, tuple[int, int]] = {}
        for r in measured:
            start, end = spans.get(r.trial, (r.scheduled_us, r.end_us))
            spans[r.trial] = min(start, r.scheduled_us), max(end, r.end_us)
        stalls: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for stall in cell.client.stalls:
            if (clipped := _clip(stall, *spans.get(stall.trial, (0, 0)))) is not None:
                stalls[stall.trial, stall.worker].append(clipped)
        self._before = {key: _Clock(sorted(each)) for key, each in stalls.items()}
        lengths_ms = [(end - start) / 1e3 for each in stalls.values() for start, end in each]
        self.total_ms = sum(lengths_ms)
        self.time_share = self.total_ms / max(sum(end - start for start, end in spans.values()) / 1e3, 1e-3)
        self.time_share /= cell.client.num_workers
        num_hit = sum(self._within(r, r.scheduled_us, r.end_us) > 0 for r in measured)
        self.text = (f"the client stood still for {self.total_ms:,.0f} ms, {self.time_share:.1%} of the time, "
                     f"{max(lengths_ms, default=0.0):,.0f} ms of it at once, with {num_hit} of {len(measured)} "
                     "requests in flight or due")

    def moved(self, good: Sequence[RequestRecord]) -> list[_Moved]:
        """The percentiles that may be the client's; from schedule in an open loop, where the wait to be sent counts."""
        origin = " from schedule" if self._is_open_loop else ""
        first = [(r, r.first_content_us) for r in good if r.is_stream and r.first_content_us is not None]
        found = []
        for name, ends in (("time to first token", first), ("latency", [(r, r.end_us) for r in good])):
            spans = [(r, r.scheduled_us if self._is_open_loop else r.sent_us, end) for r, end in ends]
            shown = sorted(end - start for _, start, end in spans)
            least = sorted(end - start - self._within(r, start, end) for r, start, end in spans)
            found += [_Moved(name + origin, percent, percentile(shown, percent) / 1e3, percentile(least, percent) / 1e3)
                      for percent in SHOWN if len(shown) >= num_samples_needed(percent)]
        return [each for each in found if each.shown_ms > (1 + MAX_MOVED_SHARE) * each.least_ms]

    def _within(self, record: RequestRecord, start_us: int, end_us: int) -> int:
        """For how long the process of this request stood still between these times."""
        clock = self._before.get((record.trial, record.worker))
        return 0 if clock is None else clock.stood_still(end_us) - clock.stood_still(start_us)


class _Clock:
    """The time that one process stood still before any moment."""

    def __init__(self, stalls: Sequence[tuple[int, int]]) -> None:
        self._stalls = stalls
        self._sums = [0, *accumulate(end - start for start, end in stalls)]

    def stood_still(self, until_us: int) -> int:
        begun = bisect_right(self._stalls, (until_us, until_us))
        if not begun:
            return 0
        start, end = self._stalls[begun - 1]
        return self._sums[begun - 1] + min(until_us, end) - start


def _clip(stall: Stall, start_us: int, end_us: int) -> tuple[int, int] | None:
    start, end = max(stall.start_us, start_us), min(stall.end_us, end_us)
    return (start, end) if start < end else None
