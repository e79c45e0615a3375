"""The report of a result as one HTML file: findings first, then plots, tables, definitions and set-up."""

from __future__ import annotations

import datetime
from html import escape
from pathlib import Path

from pelton.bench.files import write_atomic
from pelton.bench.percentiles import RULE
from pelton.bench.report.document import document, plot_section
from pelton.bench.report.plots import make_plots
from pelton.bench.report.setup import setup_facts
from pelton.bench.report.stages import stages_section
from pelton.bench.report.tables import (
    cells_table,
    client_table,
    definitions,
    extras_table,
    facts,
    findings_list,
    search_steps,
    throughput_table,
    verdict_line,
    verdicts_table,
)
from pelton.bench.report.view import ReportView
from pelton.bench.results import RunResult
from pelton.bench.table import place


def write_report(result: RunResult, path: Path) -> None:
    """Writes the report of a result.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, render(result).encode())


def render(result: RunResult) -> str:
    """The report as one HTML text."""
    view = ReportView(result)
    plots = make_plots(result)
    body = "\n".join((
        _header(view),
        f"<section><h2>Audit</h2>{verdict_line(view)}{findings_list(result)}"
        f"{verdicts_table(view) if view.cells else ''}</section>",
        *map(plot_section, plots),
        "" if result.search is None else f"<section><h2>Search</h2>{search_steps(result.search)}</section>",
        _tables(view), stages_section(view),
        "<section><h2>Definitions</h2><details>"
        f"<summary>{len(result.metrics)} metrics: formula, unit, meaning</summary>"
        f"{definitions(result, RULE)}</details></section>",
        _setup(view)))
    return document(f"{result.target.model}: benchmark report", body, plots)


def _header(view: ReportView) -> str:
    result = view.result
    state = "" if result.status == "complete" else (
        f'<p class="partial">Partial result{f": {escape(result.stop_reason)}" if result.stop_reason else ""}. '
        "See the audit for what is missing.</p>")
    lengths = result.workload.output_tokens
    output = f"{', '.join(lengths)} output token{'' if lengths == ['1'] else 's'}"
    return (f'<header><p class="over">pelton bench {result.kind}</p><h1>{escape(result.target.model)}</h1>'
            f"<p>{escape(place(result.target))}, {output} a request. "
            f"{escape(_date(result.environment.started_at))}</p>{state}"
            f'<div class="tiles">{_tiles(view)}</div></header>')


def _tiles(view: ReportView) -> str:
    """The run in figures. The best ones are those of cells that did not fail; where only failed cells have one, a
    line in its place says so."""
    num_cells, num_requests = len(view.cells), sum(c.num_done for c in view.cells)
    tiles = [_tile(f"{num_cells}", f"{'cell' if num_cells == 1 else 'cells'} measured"),
             _tile(f"{num_requests:,}", "request" if num_requests == 1 else "requests")]
    rates = [(c, rate) for c in view.cells if (rate := c.value("output_throughput"))]
    firsts = [(c, found.p50) for c in view.cells if (found := c.distribution("ttft")) is not None]
    unsound = []
    for name, found, pick, form in (("peak output tokens/s", rates, max, "{:,.0f}"),
                                    ("lowest median TTFT", firsts, min, "{:,.1f} ms")):
        sound = [value for cell, value in found if not view.failed(cell)]
        if sound:
            tiles.append(_tile(form.format(pick(sound)), name))
        elif found:
            unsound.append(name)
    if unsound:
        names = " or ".join(unsound)
        tiles.append(f"<p>No cell is sound enough for {names}: the audit failed those that have one.</p>")
    return "".join(tiles)


def _tile(value: str, name: str) -> str:
    return f"<div><b>{value}</b><span>{name}</span></div>"


def _date(iso: str) -> str:
    """2026-01-31T10:20:30+00:00 as 31 January 2026, 10:20 UTC; anything else as it is."""
    try:
        return datetime.datetime.fromisoformat(iso).astimezone(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return iso


def _tables(view: ReportView) -> str:
    result = view.result
    streamed = [c for c in view.cells if c.is_stream]
    whole = [c for c in view.cells if not c.is_stream]
    parts = []
    if streamed:
        parts += ["<h2>Latency, streaming</h2>",
                  cells_table("First token", streamed, ["ttft", "in_flight_input_tokens"], result),
                  cells_table("Between tokens", streamed, ["itl", "tpot"], result),
                  cells_table("Whole request", streamed, ["decode_time", "e2e_latency"], result)]
        if any(not c.load.is_closed for c in streamed):
            parts.append(cells_table("From the time the load wanted it sent", streamed,
                                     ["ttft_scheduled", "e2e_latency_scheduled"], result))
        parts += ["<h2>Throughput, streaming</h2>", throughput_table(streamed)]
    if whole:
        parts += ["<h2>Latency, whole answers</h2>",
                  cells_table("Whole request", whole, ["e2e_latency", "request_output_rate"], result),
                  "<h2>Throughput, whole answers</h2>", throughput_table(whole)]
    if extras := extras_table(view):
        parts += ["<h2>Targets, cost and energy</h2>", extras]
    note = ('<p class="foot">Under each percentile stands its confidence interval of 95 %; an end that the samples do '
            "not reach is left open. <i>Needs 12 more</i>: the percentile is withheld, because the cell has so many "
            "samples too few for it.</p>")
    return f"<section>{''.join(parts)}{note}</section>"


def _setup(view: ReportView) -> str:
    result = view.result
    return (f"<section><h2>Set-up</h2>{facts(setup_facts(result))}{client_table(view.cells)}<p>The same run again:</p>"
            f"<pre>{escape(result.environment.command)}</pre></section>")
