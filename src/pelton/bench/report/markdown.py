"""The report in short, as Markdown: verdicts, findings, a table of the cells, pictures, set-up."""

from __future__ import annotations

from collections.abc import Sequence

from pelton.bench.audit import is_answer_sound
from pelton.bench.report.figure import Plot
from pelton.bench.report.setup import setup_facts
from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, Distribution, RunResult, SearchResult
from pelton.bench.table import number, place

HEADS = ("cell", "audit", "in flight", "TTFT P50 ms", "TTFT P95 ms", "ITL P50 ms", "output tokens/s", "requests",
         "failed")
STAGE_HEADS = ("stage", "in flight, mean / most", "TTFT P50 ms", "TTFT P95 ms", "ITL P50 ms",
               "latency from schedule P95 ms", "output tokens/s", "requests", "failed")


def summary(view: ReportView, pictures: Sequence[tuple[Plot, str]]) -> str:
    """`pictures`: each plot with its picture's path, relative to the Markdown file."""
    result = view.result
    lines = [f"# {_plain(result.target.model)}: pelton bench {result.kind}", "",
             f"{place(result.target)}, {result.environment.started_at}, {result.duration_s:.1f} s.", ""]
    if result.status != "complete":
        reason = f": {_plain(result.stop_reason)}" if result.stop_reason else ""
        lines += [f"**Partial result{reason}.**", ""]
    counts = [(v, sum(found == v for found in view.verdicts.values())) for v in ("failed", "with care", "sound")]
    lines += ["## Audit", "", "Cells: " + (", ".join(f"{n} {v}" for v, n in counts if n) or "none") + ".", ""]
    lines += [f"- **{f.severity}** `{f.name}`: {_plain(f.evidence)}. {_plain(f.advice)}" for f in result.findings]
    if result.search is not None:
        lines += ["", "## Search", "", *_search(result, result.search)]
    lines += ["", "## Cells", "", _row(HEADS), _row(["---", "---"] + ["--:"] * (len(HEADS) - 2))]
    lines += [_row(_cells(view, cell)) for cell in view.cells]
    lines += ["", "Behind a percentile stands its confidence interval of 95 %. *Needs n more*: withheld, with so many "
              "samples too few.", ""]
    lines += [line for cell in view.cells if cell.stages for line in _stages(cell)]
    for plot, path in pictures:
        lines += [f"## {plot.title}", "", plot.caption, "", f"![{plot.title}]({path})", ""]
    lines += ["## Set-up", "", *(f"- {name}: {_plain(value)}" for name, value in setup_facts(result)), ""]
    return "\n".join(lines)


def _search(result: RunResult, search: SearchResult) -> list[str]:
    best = "nothing passed" if search.best is None else f"{search.variable} {search.best:.4g}"
    found = best if is_answer_sound(result) else f"no sound answer, as the audit failed the cell of {best}"
    caveat = f" ({search.caveat})" if search.caveat else ""
    return [f"{_plain(search.criterion)}: {found}{caveat}.", "",
            *(f"- {s.level:.4g}: {search.outcome(s)}; {_plain(s.reason)}" for s in search.steps)]


def _cells(view: ReportView, cell: CellResult) -> list[str]:
    ttft = cell.distribution("ttft")
    state = "" if cell.status == "complete" else " (partial)"
    return [f"`{cell.id}`{state}", view.verdicts[cell.id], number(cell.value("in_flight_requests")),
            _percentile(ttft, "p50"), _percentile(ttft, "p95"), _percentile(cell.distribution("itl"), "p50"),
            number(cell.value("output_throughput")), f"{cell.num_done:,}", f"{sum(cell.errors.values()):,}"]


def _stages(cell: CellResult) -> list[str]:
    rows = [[_plain(stage.name), f"{number(stage.value('in_flight_requests'))} / {stage.peak_in_flight}",
             _percentile(stage.distribution("ttft"), "p50"), _percentile(stage.distribution("ttft"), "p95"),
             _percentile(stage.distribution("itl"), "p50"),
             _percentile(stage.distribution("e2e_latency_scheduled"), "p95"),
             number(stage.value("steady_output_throughput")), f"{stage.num_done:,}",
             f"{sum(stage.errors.values()):,}"] for stage in cell.stages]
    return [f"## Stages of `{cell.id}`", "", _row(STAGE_HEADS), _row(["---"] + ["--:"] * (len(STAGE_HEADS) - 1)),
            *map(_row, rows), ""]


def _percentile(found: Distribution | None, name: str) -> str:
    if found is None:
        return "–"
    if name in found.missing:
        return f"*needs {found.missing[name]} more*"
    percentile = found.percentiles[name]
    ends = ("…" if end is None else number(end) for end in (percentile.low, percentile.high))
    return f"{number(percentile.value)} ({'–'.join(ends)})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text from outside as text: no markup, no table's edge, one line."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
