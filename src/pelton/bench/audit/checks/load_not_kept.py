"""An open loop whose requests were sent late or held back, or whose server fell behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pelton.bench.audit.view import View, join, report
from pelton.bench.counted import counted
from pelton.bench.results import CellResult, Finding, RequestRecord

MIN_SHARE_ANSWERED = 0.95
MAX_LATE_SHARE = 0.1  # of the median latency, by which half of the requests may be late
MIN_LATE_MS = 1.0
MAX_TAIL_SHARE = 0.01  # of the requests: P99 is one of these if there are more
MIN_TAIL_REQUESTS = 2
MIN_TAIL_MS = 150.0  # what the scheduler of a busy machine does not reach


def check(view: View) -> Iterator[Finding]:
    open_loops = [c for c in view.cells if not c.load.is_closed and c.num_done]
    late = {c.id: f"half of the requests left more than {c.distribution('queue_delay').p50:,.1f} ms after their time"
            for c in open_loops if _is_late(c)}
    yield from report(
        "sent_behind_schedule", "failure", late,
        "The load that was asked for was not the load that was sent: latencies from sending are too good. Read those "
        "from schedule, raise max_in_flight, or give the client more workers.")
    tails = {c.id: text for c in open_loops if c.id not in late and (text := _late_tail(view, c)) is not None}
    yield from report(
        "sent_behind_schedule", "warning", tails,
        "The client fell behind for a time: latencies from sending leave out what these requests waited, and the "
        "server met them in a burst. Read latencies from schedule, and measure again on a quieter machine.")
    held = {c.id: f"{counted(c.num_held, 'request')} (warm-up included) {'was' if c.num_held == 1 else 'were'} due "
                  f"while {c.load.max_in_flight} were in flight, and waited" for c in open_loops if c.num_held}
    yield from report(
        "requests_held", "warning", held,
        "The client's own limit held them back, so the server saw fewer at once than the load has. Raise "
        "max_in_flight, or read latencies from schedule, which hold the wait, and take the rate as too high for this "
        "server.")
    behind = {}
    for cell in open_loops:
        rate, answered = cell.load.rate, cell.value("request_throughput") or 0.0
        if rate and answered < MIN_SHARE_ANSWERED * rate and cell.id not in late and _grows(view, cell):
            behind[cell.id] = f"{rate:g} requests/s came, {answered:.2f} were answered"
        elif stages := _overloaded_stages(view, cell):
            behind[cell.id] = join(stages)
    yield from report(
        "server_overloaded", "warning", behind,
        "More came than the server could answer, so latency grew for as long as the cell, or the stage, lasted and "
        "depends on its length. It says that the rate is too high, and no more.")


def _is_late(cell: CellResult) -> bool:
    delay, latency = cell.distribution("queue_delay"), cell.distribution("e2e_latency")
    return (delay is not None and latency is not None and delay.p50 > MIN_LATE_MS
            and delay.p50 > MAX_LATE_SHARE * latency.p50)


def _late_tail(view: View, cell: CellResult) -> str | None:
    """Requests that left so late that a tail holds them; those that waited for a place have a finding of their own."""
    good, latency = view.good(cell), cell.distribution("e2e_latency")
    if latency is None:
        return None
    most_ms = max(MIN_TAIL_MS, MAX_LATE_SHARE * latency.p50)
    late = [delay_ms for r in good if (delay_ms := (r.sent_us - r.scheduled_us) / 1e3) > most_ms]
    num_late = len(late) - cell.num_held
    if num_late < MIN_TAIL_REQUESTS or num_late <= MAX_TAIL_SHARE * len(good):
        return None
    return (f"{len(late)} of {len(good)} requests left more than {most_ms:,.0f} ms after their time, up to "
            f"{max(late):,.0f} ms")


def _grows(view: View, cell: CellResult) -> bool:
    """Whether more were in flight when the last request arrived than at half of the arrivals."""
    records = sorted(view.measured(cell), key=lambda r: r.scheduled_us)
    middle, last = records[len(records) // 2].scheduled_us, records[-1].scheduled_us
    in_flight = [sum(r.scheduled_us <= at < r.end_us for r in records) for at in (middle, last)]
    return _is_growth(*in_flight)


def _is_growth(before: int, after: int) -> bool:
    return after > 1.2 * before + 2


def _overloaded_stages(view: View, cell: CellResult) -> list[str]:
    """What happened in the second half of the stages of one rate: by then as many leave as come, where they can."""
    constant = {stage.name: stage.rate for stage in cell.load.stages if stage.rate and stage.rate == stage.end_rate}
    found = []
    for stage in cell.stages:
        for window in stage.windows if stage.name in constant else []:
            records = [r for r in view.measured(cell) if r.trial == window.trial]
            if window.withheld is not None:
                continue
            if _falls_behind(records, (window.start_us + window.end_us) // 2, window.end_us):
                found.append(f"stage {stage.name}: more came than were answered")
                break
    return found


def _falls_behind(records: Sequence[RequestRecord], start_us: int, end_us: int) -> bool:
    came = sum(start_us <= r.scheduled_us < end_us for r in records)
    answered = sum(start_us <= r.end_us < end_us for r in records)
    in_flight = [sum(r.scheduled_us <= at < r.end_us for r in records) for at in (start_us, end_us)]
    return answered < MIN_SHARE_ANSWERED * came and _is_growth(*in_flight)
