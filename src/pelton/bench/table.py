"""Results as tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pelton.bench.audit import is_answer_sound, verdicts
from pelton.bench.results import CellResult, Distribution, Finding, RunResult, StageResult, TargetInfo

VERDICT_STYLES = {"failed": "bold red", "with care": "yellow", "sound": "green"}
SEVERITY_STYLES = {"failure": "bold red", "warning": "yellow", "note": "dim"}
PERCENTS = (50, 95, 99)
PIPE_WIDTH = 110


def make_console() -> Console:
    """Standard output: a terminal at its own width, a file or pipe wide enough for every table."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def number(value: float | None) -> str:
    """Three or four digits that matter, thousands grouped; a dash for none."""
    if value is None:
        return "–"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 or value == int(value) else 1 if magnitude >= 10 else 2
    return f"{value:,.{digits}f}"


def place(target: TargetInfo) -> str:
    """What was measured and where: a route of a server, or an engine in this process."""
    return f"{target.url}, {target.endpoint}" if target.endpoint == "offline" else f"{target.endpoint} at {target.url}"


def _percentile(found: Distribution | None, percent: int) -> str:
    if found is None:
        return "–"
    return number(found.value(f"p{percent}"))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None,
                  padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    return table


def whole_table(cells: Sequence[CellResult], found: Mapping[str, str]) -> Table:
    """Answers without streaming: latency, tokens, rates, and the verdict found on each cell."""
    late = _from_schedule(cells)
    table = _table("Whole answers, no streaming",
                   ("prompt\ntokens", "output\ntokens", "in flight\nmean / of", "latency ms\nP50", "\nP95", "\nP99",
                    *late, "tok/s each\nP50", "output\ntok/s", "input\ntok/s", "\nfailed", "\naudit"))
    for cell in cells:
        latency = cell.distribution("e2e_latency")
        table.add_row(*_sizes(cell), _in_flight(cell), *(_percentile(latency, p) for p in PERCENTS),
                      *_late(cell, "e2e_latency", late), _percentile(cell.distribution("request_output_rate"), 50),
                      number(cell.value("output_throughput")), number(cell.value("input_throughput")), _failed(cell),
                      _verdict(found[cell.id]))
    return table


def stream_table(cells: Sequence[CellResult], found: Mapping[str, str]) -> Table:
    """Streamed answers: first token, gaps, decode time, and the verdict found on each cell."""
    late = _from_schedule(cells)
    table = _table("Streaming",
                   ("prompt\ntokens", "output\ntokens", "in flight\nmean / of", "TTFT ms\nP50", "\nP95", "\nP99",
                    *late, "ITL ms\nP50", "\nP95", "decode ms\nP50", "output\ntok/s", "\nfailed", "\naudit"))
    for cell in cells:
        ttft, itl = cell.distribution("ttft"), cell.distribution("itl")
        table.add_row(*_sizes(cell), _in_flight(cell), *(_percentile(ttft, p) for p in PERCENTS),
                      *_late(cell, "ttft", late), _percentile(itl, 50), _percentile(itl, 95),
                      _percentile(cell.distribution("decode_time"), 50),
                      number(cell.value("output_throughput")), _failed(cell), _verdict(found[cell.id]))
    return table


def stage_table(cell: CellResult) -> Table:
    """The stages of a piecewise load, in their order."""
    table = _table(f"Stages of {cell.id}", ("stage", "in flight\nmean / most", "TTFT ms\nP50", "\nP95", "ITL ms\nP50",
                                            "from schedule\nms P95", "output\ntok/s", "\nrequests", "\nfailed"))
    for stage in cell.stages:
        ttft = stage.distribution("ttft")
        table.add_row(escape(stage.name), f"{number(stage.value('in_flight_requests'))} / {stage.peak_in_flight:>3}",
                      _percentile(ttft, 50), _percentile(ttft, 95), _percentile(stage.distribution("itl"), 50),
                      _percentile(stage.distribution("e2e_latency_scheduled"), 95),
                      number(stage.value("steady_output_throughput")), f"{stage.num_done}", _failed(stage))
    return table


def _from_schedule(cells: Sequence[CellResult]) -> tuple[str, ...]:
    """Columns for the same time from the moment the load wanted the request sent; a closed loop has no such moment."""
    return () if all(cell.load.is_closed for cell in cells) else ("scheduled\nP95", "\nP99")


def _late(cell: CellResult, metric: str, columns: Sequence[str]) -> list[str]:
    found = cell.distribution(f"{metric}_scheduled")
    return [_percentile(found, percent) for percent in (95, 99) if columns]


def _in_flight(cell: CellResult) -> str:
    """Measured in flight, and the load asked for: 8 in flight, or r2.5 requests a second."""
    return f"{number(cell.value('in_flight_requests'))} / {cell.load.key.removeprefix('c'):>3}"


def _sizes(cell: CellResult) -> tuple[str, str]:
    """Medians of the true sizes; a size that is not the one asked for is marked."""
    texts = []
    for metric, asked in (("prompt_tokens", cell.requested_prompt_tokens),
                          ("output_tokens", cell.requested_output_tokens)):
        found = cell.distribution(metric)
        is_as_asked = found is None or not cell.has_fixed_sizes or found.min == found.max == asked
        text = number(None if found is None else found.p50)
        texts.append(text if is_as_asked else f"[yellow]{text}![/yellow]")
    return texts[0], texts[1]


def _verdict(verdict: str) -> str:
    style = VERDICT_STYLES[verdict]
    return f"[{style}]{verdict}[/{style}]"


def _failed(cell: CellResult | StageResult) -> str:
    num_failed = sum(cell.errors.values())
    return f"[red]{num_failed}[/red]" if num_failed else "0"


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The audit, one paragraph per finding."""
    if not findings:
        console.print("[bold]Audit[/bold]: nothing found.")
        return
    console.print("[bold]Audit[/bold]")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        style = SEVERITY_STYLES[finding.severity]
        grid.add_row(f"  [{style}]{finding.severity}[/{style}]",
                     f"{finding.name}: {escape(finding.evidence)}. [dim]{escape(finding.advice)}[/dim]")
    console.print(grid, highlight=False)


def print_result(console: Console, result: RunResult) -> None:
    """All tables of a run and its findings."""
    target = result.target
    console.print(f"[bold]{escape(target.model)}[/bold], {escape(place(target))}, "
                  f"{result.duration_s:.1f} s" + ("" if result.status == "complete" else " [yellow](partial)[/yellow]"),
                  highlight=False)
    ordered = sorted(result.cells, key=lambda c: (c.requested_prompt_tokens, c.load.order))
    found = verdicts(result)
    for is_stream, make in ((False, whole_table), (True, stream_table)):
        if cells := [c for c in ordered if c.is_stream == is_stream]:
            console.print()
            console.print(make(cells, found))
    for cell in ordered:
        if cell.stages:
            console.print()
            console.print(stage_table(cell))
    if any(d.missing.get("p95") for c in result.cells if (d := c.distribution("e2e_latency")) is not None):
        console.print("[dim]– under P95 or P99: too few samples; the audit says how many more[/dim]")
    console.print()
    print_findings(console, result.findings)


def search_table(result: RunResult) -> Table:
    """The levels of a search in the order in which they were tried, and what it found."""
    search = result.search
    unit = {"concurrency": "in flight", "request_rate": "requests/s"}[search.variable]
    least = "at least " if search.least_failed is None else ""
    found = "no level passed" if search.best is None else f"{least}{search.best:.4g} {unit}"
    if not is_answer_sound(result):
        found = f"no sound answer, as the audit failed the cell of {search.best:.4g} {unit}"
    beyond = "" if search.least_failed is None else f"; {search.least_failed:.4g} did not pass"
    state = f" ({search.caveat})" if search.caveat else ""
    table = _table(f"Search: {escape(search.criterion)}: {found}{beyond}{state}", (unit, "", "why"))
    table.columns[-1].no_wrap = False
    for step in search.steps:
        outcome = search.outcome(step)
        table.add_row(f"{step.level:.4g}", outcome if step.passed else f"[dim]{outcome}[/dim]", escape(step.reason))
    return table
