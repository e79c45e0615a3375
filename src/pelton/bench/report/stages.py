"""A table of the stages of each piecewise load."""

from __future__ import annotations

from html import escape

from pelton.bench.report.tables import grid, percentile_cell
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, StageResult
from pelton.bench.table import number

HEADS = ("stage", "in flight<br>mean / most", "TTFT P50<br>ms", "TTFT P95<br>ms", "ITL P50<br>ms",
         "latency from<br>schedule P50", "<br>P95 ms", "output<br>tokens/s", "answered<br>requests/s", "requests",
         "failed")
SHOWN = (("ttft", 50), ("ttft", 95), ("itl", 50), ("e2e_latency_scheduled", 50), ("e2e_latency_scheduled", 95))
NOTE = ('<p class="foot">Latencies are those of the requests that began in the stage; in flight, tokens/s and '
        "requests/s are those of its time, in which requests of the stage before may still be answered.</p>")


def stages_section(view: ReportView) -> str:
    """One table a cell; empty where no load has stages."""
    tables = "".join(_table(cell, has_targets=bool(view.result.analysis.goodput)) for cell in view.cells if cell.stages)
    return f"<section><h2>Stages</h2>{tables}{NOTE}</section>" if tables else ""


def _table(cell: CellResult, *, has_targets: bool) -> str:
    heads = (*HEADS, "within<br>targets %") if has_targets else HEADS
    return grid(heads, [_row(stage, has_targets=has_targets) for stage in cell.stages], cell.id)


def _row(stage: StageResult, *, has_targets: bool) -> str:
    num_failed = sum(stage.errors.values())
    parts = [f"<th scope=row>{escape(stage.name)}</th>",
             f"<td>{number(stage.value('in_flight_requests'))} / {stage.peak_in_flight}</td>"]
    for name, percent in SHOWN:
        parts.append(percentile_cell(stage.distribution(name), percent, stage.metrics[name].withheld))
    parts += [f"<td>{number(stage.value(name))}</td>" for name in ("steady_output_throughput", "request_throughput")]
    parts += [f"<td>{stage.num_done:,}</td>", f'<td class="{"bad" if num_failed else ""}">{num_failed}</td>']
    if has_targets:
        parts.append(f"<td>{number(stage.value('attainment'))}</td>")
    return f"<tr>{''.join(parts)}</tr>"
