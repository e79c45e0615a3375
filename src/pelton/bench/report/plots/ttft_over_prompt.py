"""P95 time to first token over the true prompt size."""

from __future__ import annotations

from pelton.bench.report.cell_lines import by_load, cell_figure, percentile_of
from pelton.bench.report.figure import Plot, line
from pelton.bench.report.view import ReportView


def make(view: ReportView) -> Plot | None:
    cells = [c for c in view.streamed if c.has_fixed_sizes]
    figure = cell_figure(view, by_load(view, cells), x=lambda c: getattr(c.distribution("prompt_tokens"), "p50", None),
                         y=percentile_of("ttft", "p95"), x_title="prompt tokens (as the server counted them)",
                         y_title="P95 time to first token (ms)")
    if figure is None or len({c.requested_prompt_tokens for c in cells}) < 2:
        return None
    note = ""
    if view.roofline is not None:
        sizes = sorted({x for trace in figure["data"] for x in trace["x"]})
        floor = line(f"least on {view.roofline.hardware.name}", len(figure["data"]), sizes,
                     [1e3 * view.roofline.ttft_s(round(n)) for n in sizes])
        floor |= {"meta": {"series": 7, "is_soft": True}, "line": {"dash": "dot"}}
        figure["data"].append(floor)
        note = " Nothing computes a prompt alone below the dotted line."
    return Plot("ttft-over-prompt", "Time to first token over prompt length",
                f"A flat line where longer prompts must cost more hints at a cache.{note}", {"": figure})
