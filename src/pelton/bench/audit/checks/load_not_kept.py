"""An open loop whose requests were sent late, or whose server fell behind them."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding

MIN_SHARE_ANSWERED = 0.95
MAX_LATE_SHARE = 0.1  # of the median latency, by which half of the requests may be late
MIN_LATE_MS = 1.0


def check(view: View) -> Iterator[Finding]:
    open_loops = [c for c in view.cells if c.load.kind != "closed" and c.num_done]
    late = {c.id: f"half of the requests left more than {c.distribution('queue_delay').p50:,.1f} ms after their time"
            for c in open_loops if _is_late(c)}
    yield from report(
        "sent_behind_schedule", "failure", late,
        "The load that was asked for was not the load that was sent: latencies from sending are too good. Read those "
        "from schedule, raise max_in_flight, or give the client more workers.")
    behind = {}
    for cell in open_loops:
        rate, answered = cell.load.rate, cell.value("request_throughput") or 0.0
        if rate and answered < MIN_SHARE_ANSWERED * rate and cell.id not in late and _grows(view, cell):
            behind[cell.id] = f"{rate:g} requests/s came, {answered:.2f} were answered"
    yield from report(
        "server_overloaded", "warning", behind,
        "More came than the server could answer, so latency grew for as long as the cell lasted and depends on its "
        "length. It says that the rate is too high, and no more.")


def _is_late(cell: CellResult) -> bool:
    delay, latency = cell.distribution("queue_delay"), cell.distribution("e2e_latency")
    return (delay is not None and latency is not None and delay.p50 > MIN_LATE_MS
            and delay.p50 > MAX_LATE_SHARE * latency.p50)


def _grows(view: View, cell: CellResult) -> bool:
    """Whether more were in flight when the last request arrived than at half of the arrivals."""
    records = sorted(view.measured(cell), key=lambda r: r.scheduled_us)
    middle, last = records[len(records) // 2].scheduled_us, records[-1].scheduled_us
    in_flight = [sum(r.scheduled_us <= at < r.end_us for r in records) for at in (middle, last)]
    return in_flight[1] > 1.2 * in_flight[0] + 2
