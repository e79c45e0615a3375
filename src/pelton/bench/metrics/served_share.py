"""Share of an open loop's requests that the server keeps up with."""

from __future__ import annotations

from collections import defaultdict

from pelton.bench.metrics.metric import Metric, Sample, Withheld

MIN_REQUESTS = 8


def latency_slope(points: dict[int, list[tuple[float, float]]]) -> float:
    """Least-squares slope of (time, latency) points, each trial about its own means; 0 where all times are one."""
    above = below = 0.0
    for trial in points.values():
        mean_t = sum(t for t, _ in trial) / len(trial)
        mean_y = sum(y for _, y in trial) / len(trial)
        above += sum((t - mean_t) * (y - mean_y) for t, y in trial)
        below += sum((t - mean_t) ** 2 for t, _ in trial)
    return above / below if below else 0.0


def _compute(sample: Sample) -> float:
    if not sample.is_open_loop:
        raise Withheld("a closed loop sends no more than is served")
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for r in sample.ok:
        points[r.trial].append((float(r.scheduled_us), float(r.end_us - r.scheduled_us)))
    if sum(map(len, points.values())) < MIN_REQUESTS:
        raise Withheld(f"fewer than {MIN_REQUESTS} good requests")
    return 100 / (1 + max(latency_slope(points), 0.0))


METRIC = Metric(
    name="served_share", title="Load that is served", unit="%", order=91, kind="value", compute=_compute,
    formula="100 / (1 + slope), slope = growth of the latency from schedule per second of schedule, least squares",
    definition="What part of an open loop's requests the server answers as fast as they come. A server that gets more "
               "than it can answer has a queue, and latency, that grow by (rate / capacity - 1) seconds every second. "
               "Near 100 the server keeps up; the run-out at the end does not count against it.")
