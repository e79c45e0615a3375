"""What happened over time: the load as measured, the GPUs and the server's own gauges, on one clock."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pelton.bench.report.bins import Bins
from pelton.bench.report.figure import Figure, Plot, Trace, digits, thin_out
from pelton.bench.report.view import ReportView
from pelton.bench.results import RequestRecord, Series

MOST_BINS, MOST_POINTS, MOST_PARTS = 240, 12_000, 60
NUM_LATENCY_BINS = 60
PANEL_PX, GAP = 118, 0.05
# Gauges that servers show under other names: (panel, what it is here, colour, ends of the names). One legend is of all
# panels, so no two lines that may stand in it share a colour, but for those of several GPUs.
GAUGES = (("requests", "server: running", 3, ("num_requests_running", "num_running_reqs", "requests_processing",
                                              "pelton_requests_running")),
          ("requests", "server: waiting", 4, ("num_requests_waiting", "num_queue_reqs", "requests_deferred",
                                              "pelton_requests_waiting")),
          ("cache", "server: cache in use", 1, ("cache_usage_perc", "kv_cache_usage_ratio", "token_usage")))
PANEL_TITLES = {"requests": "requests", "input": "input tokens<br>in flight", "output": "output<br>tokens/s",
                "ttft": "TTFT (ms)",
                "cache": "share of<br>KV cache", "power": "power (W)", "utilization": "GPU use (%)",
                "memory_used": "GPU memory<br>(GiB)"}


@dataclass(frozen=True)
class Part:
    """A stretch of time with its requests."""

    name: str
    records: Sequence[RequestRecord]
    windows: Sequence[tuple[int, int]]
    """Steady-state windows in it, in microseconds since the run began."""


def make(view: ReportView) -> Plot | None:
    parts = _parts(view)
    if not parts:
        return None
    shown = parts[:MOST_PARTS]
    num_bins = max(min(MOST_BINS, MOST_POINTS // len(shown)), 60)
    figures = {part.name: _figure(part, view.result.series, num_bins) for part in shown}
    left_out = f" Of {len(parts)} the first {len(shown)} can be chosen." if len(parts) > len(shown) else ""
    return Plot("timeline", "Timeline",
                "The load as measured, warm-up included. The shaded part is the steady-state window. Each point is the "
                f"mean over one of {num_bins} equal parts of the time shown, so shorter peaks are levelled. Times to "
                f"first token stand where their requests were sent: the median and the slowest of each of "
                f"{NUM_LATENCY_BINS} parts. Queued: due by the load's plan and not sent yet.{left_out}", figures)


def _parts(view: ReportView) -> list[Part]:
    """The whole run, then every trial of every cell."""
    parts, windows = [], []
    for cell in view.cells:
        steady = {w.trial: (w.start_us, w.end_us) for w in cell.windows if w.start_us is not None}
        windows += steady.values()
        for trial in range(cell.num_trials):
            records = [r for r in view.requests(cell) if r.trial == trial]
            if records:
                name = cell.id + (f", trial {trial + 1}" if cell.num_trials > 1 else "")
                parts.append(Part(name, records, [steady[trial]] if trial in steady else []))
    return [Part("whole run", view.result.requests, windows), *parts] if len(parts) > 1 else parts


def _figure(part: Part, series: Sequence[Series], num_bins: int) -> Figure:
    start, end = min(r.scheduled_us for r in part.records), max(r.end_us for r in part.records)
    bins = Bins(min(start, min(r.sent_us for r in part.records)), end, num_bins)
    panels: dict[str, list[Trace]] = {
        "requests": [_binned("in flight", 0, bins, bins.mean((r.sent_us, r.end_us, 1.0) for r in part.records))],
        "input": [_binned("input tokens in flight", 1, bins, bins.mean(
            (r.sent_us, r.end_us, r.prompt_tokens) for r in part.records))],
        "output": [_binned("output tokens/s", 2, bins, _output_rate(part.records, bins))]}
    panels["ttft"] = _first_tokens(part.records, Bins(bins.start_us, bins.end_us, NUM_LATENCY_BINS))
    queued = bins.mean((r.scheduled_us, r.sent_us, 1.0) for r in part.records)
    if max(queued) >= 0.1:
        panels["requests"].append(_binned("queued in the client", 5, bins, queued))
    for panel, name, color, ends in GAUGES:
        for found in (s for s in series if s.source == "server" and s.name.endswith(ends)):
            _add(panels, panel, _watched(name, color, found, bins, num_bins))
    for found in (s for s in series if s.source == "gpu"):
        gpu = found.labels.get("gpu", "0")
        _add(panels, found.name, _watched(f"GPU {gpu}: {found.name.replace('_', ' ')}", int(gpu) % 8, found, bins,
                                          num_bins))
    return _stack({name: traces for name, traces in panels.items() if traces}, part, bins)


def _first_tokens(records: Sequence[RequestRecord], bins: Bins) -> list[Trace]:
    """Median and slowest time to first token (of whole answers: to their end) by when the request was sent."""
    groups: dict[int, list[float]] = defaultdict(list)
    for r in records:
        end_us = r.first_content_us if r.is_stream else r.end_us
        if r.is_ok and end_us is not None:
            groups[min(int((r.sent_us - bins.start_us) / bins.width_us), bins.count - 1)].append(
                (end_us - r.sent_us) / 1e3)
    if not groups:
        return []
    xs = [round((bins.start_us + (place + 0.5) * bins.width_us) / 1e6, 3) for place in sorted(groups)]
    return [{"type": "scatter", "mode": "lines", "name": name, "meta": {"series": series}, "x": xs,
             "y": [digits(pick(groups[place])) for place in sorted(groups)],
             "hovertemplate": "%{y:,.4g} ms at %{x:.3f} s"}
            for name, series, pick in (("first token: median", 6, statistics.median), ("first token: slowest", 7, max))]


def _output_rate(records: Sequence[RequestRecord], bins: Bins) -> list[float]:
    """Output tokens per second: a request's tokens are dealt out evenly over its chunks, or come at its end."""
    return bins.rate([(r.sent_us, r.content_us, r.output_tokens / len(r.content_us)) if r.content_us
                      else (r.end_us, (0,), float(r.output_tokens)) for r in records if r.content_us or r.is_ok])


def _binned(name: str, series: int, bins: Bins, values: list[float]) -> Trace:
    return {"type": "scatter", "mode": "lines", "name": name, "meta": {"series": series}, "line": {"shape": "hv"},
            "x0": bins.start_us / 1e6, "dx": bins.width_us / 1e6, "y": [digits(v) for v in values],
            "hovertemplate": "%{y:,.4g} at %{x:.3f} s"}


def _watched(name: str, series: int, found: Series, bins: Bins, most: int) -> Trace | None:
    points = [(at / 1e6, value) for at, value in zip(found.at_us, found.values, strict=True)
              if bins.start_us <= at <= bins.end_us]
    if not points:
        return None
    xs, ys = thin_out(*zip(*points), most)
    return {"type": "scatter", "mode": "lines", "name": name, "meta": {"series": series},
            "x": [round(x, 3) for x in xs], "y": [digits(y) for y in ys],
            "hovertemplate": "%{y:,.4g} at %{x:.3f} s"}


def _add(panels: dict[str, list[Trace]], panel: str, trace: Trace | None) -> None:
    if trace is not None:
        panels.setdefault(panel, []).append(trace)


def _stack(panels: dict[str, list[Trace]], part: Part, bins: Bins) -> Figure:
    """One panel above the other, over one axis of time."""
    count = len(panels)
    height = (1 - GAP * (count - 1)) / count
    data: list[Trace] = []
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "time since the run began (s)"}, "anchor": f"y{count}" if count > 1 else "y",
                  "range": [bins.start_us / 1e6, bins.end_us / 1e6]},
        "height": PANEL_PX * count + 90,
        "shapes": [{"type": "rect", "xref": "x", "yref": "paper", "x0": start / 1e6, "x1": end / 1e6, "y0": 0, "y1": 1}
                   for start, end in part.windows]}
    for number, (panel, traces) in enumerate(panels.items()):
        end = "" if number == 0 else str(number + 1)
        top = 1 - number * (height + GAP)
        layout[f"yaxis{end}"] = {"title": {"text": PANEL_TITLES.get(panel, panel)}, "rangemode": "tozero",
                                 "domain": [max(round(top - height, 4), 0.0), round(top, 4)], "nticks": 4}
        data += [trace | {"yaxis": f"y{end}", "showlegend": len(traces) > 1} for trace in traces]
    return {"data": data, "layout": layout}
