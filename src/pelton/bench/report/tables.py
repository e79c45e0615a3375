"""The report's tables, findings and definitions as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pelton.bench.report.view import ReportView
from pelton.bench.results import CellResult, ClientLoad, Distribution, Percentile, RunResult, SearchResult
from pelton.bench.table import number

PERCENTS = (50, 90, 95, 99)
SEVERITY_TITLES = {"failure": "Failure", "warning": "Warning", "note": "Note"}
TEXT_HEADS = ("findings", "why")
VERDICT_CLASSES = {"failed": "failure", "with care": "warning", "sound": "sound"}


def grid(heads: Sequence[str], rows: Iterable[str], caption: str = "") -> str:
    """A table that scrolls sideways where it is too wide; cells of the rows are HTML."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(f"<th scope=col{' class=left' if h in TEXT_HEADS else ''}>{h}</th>" for h in heads)
    return (f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            "</div>")


def verdict_line(view: ReportView) -> str:
    """How many cells are sound."""
    counts = [(verdict, sum(v == verdict for v in view.verdicts.values())) for verdict in VERDICT_CLASSES]
    inner = "".join(f'<span class="verdict {VERDICT_CLASSES[v]}">{n} {v}</span>' for v, n in counts if n)
    return f'<p class="verdicts">{inner}</p>' if inner else ""


def verdicts_table(view: ReportView) -> str:
    """One row per cell: the verdict, what led to it, and the figures in short."""
    heads = ("cell", "audit", "in flight<br>measured", "TTFT P50<br>ms", "TTFT P95<br>ms", "output<br>tokens/s",
             "requests", "findings")
    rows = []
    for cell in view.cells:
        verdict = view.verdicts[cell.id]
        names = [f.name for f in view.result.findings if f.severity != "note" and (not f.cells or cell.id in f.cells)]
        ttft = cell.distribution("ttft")
        state = "" if cell.status == "complete" else ' <span class="asked">partial</span>'
        rows.append(
            f"<tr><th scope=row>{escape(cell.id)}{state}</th>"
            f'<td><span class="verdict {VERDICT_CLASSES[verdict]}">{verdict}</span></td>'
            f"<td>{number(cell.value('in_flight_requests'))}</td>{percentile_cell(ttft, 50)}{percentile_cell(ttft, 95)}"
            f"<td>{number(cell.value('output_throughput'))}</td><td>{cell.num_done:,}</td>"
            f'<td class="names">{escape(", ".join(names))}</td></tr>')
    return grid(heads, rows, "Every cell's verdict")


def cells_table(caption: str, cells: Sequence[CellResult], metrics: Sequence[str], result: RunResult) -> str:
    """One row per cell: what was asked for, what was measured, and the percentiles of the metrics."""
    defined = {m.name: m for m in result.metrics}
    groups, subheads = [], []
    for name in metrics:
        metric = defined[name]
        width = len(PERCENTS) if metric.is_distribution else 1
        groups.append(f'<th colspan="{width}" scope="colgroup">{escape(metric.title)} ({escape(metric.unit)})</th>')
        subheads += [f"<th>P{p}</th>" for p in PERCENTS] if metric.is_distribution else ["<th>mean</th>"]
    shown = [(defined[name].is_distribution, name) for name in metrics]
    rows = [_cell_row(cell, shown, opens) for cell, opens in zip(cells, _opens_group(cells))]
    return (f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>'
            '<th rowspan="2" scope="col">prompt<br>tokens</th><th rowspan="2" scope="col">load<br>asked for</th>'
            '<th rowspan="2" scope="col">in flight<br>measured</th>' + "".join(groups) + "</tr><tr>"
            + "".join(subheads) + "</tr></thead><tbody>" + "".join(rows) + "</tbody></table></div>")


def _opens_group(cells: Sequence[CellResult]) -> list[str]:
    """The class of each row: marked where another prompt size begins."""
    sizes = [c.requested_prompt_tokens for c in cells]
    return [' class="opens"' if i and size != sizes[i - 1] else "" for i, size in enumerate(sizes)]


def _true_size(cell: CellResult) -> str:
    sizes = cell.distribution("prompt_tokens")
    if sizes is None:
        return "–"
    if not cell.has_fixed_sizes:
        return f"{sizes.min:g}–{sizes.max:g}"
    true = f"{sizes.p50:g}"
    asked = cell.requested_prompt_tokens
    return true if true == str(asked) else f'{true} <span class="asked">of {asked} asked for</span>'


def _cell_row(cell: CellResult, metrics: list[tuple[bool, str]], opens: str) -> str:
    texts = [f"<th scope=row>{_true_size(cell)}</th>", f"<td>{escape(cell.load.label)}</td>",
             f"<td>{number(cell.value('in_flight_requests'))}</td>"]
    for is_distribution, name in metrics:
        if is_distribution:
            withheld = cell.metrics[name].withheld if name in cell.metrics else None
            texts += [percentile_cell(cell.distribution(name), p, withheld) for p in PERCENTS]
        else:
            texts.append(f"<td>{number(cell.value(name))}</td>")
    return f"<tr{opens}>{''.join(texts)}</tr>"


def percentile_cell(found: Distribution | None, percent: int, withheld: str | None = None) -> str:
    """A percentile with its interval, or how many samples it lacks."""
    if found is None:
        return f'<td class="none" title="{escape(withheld or "", quote=True)}">–</td>'
    name = f"p{percent}"
    if name in found.missing:
        return f'<td class="thin">needs {found.missing[name]} more</td>'
    return f"<td>{number(found.value(name))}<small>{_interval(found.percentiles[name])}</small></td>"


def _interval(found: Percentile) -> str:
    """Its 95 % confidence interval; an end that the samples do not reach is left open."""
    if found.low is None and found.high is None:
        return ""
    if found.low is None:
        return f"≤ {number(found.high)}"
    return f"≥ {number(found.low)}" if found.high is None else f"{number(found.low)}–{number(found.high)}"


def throughput_table(cells: Sequence[CellResult]) -> str:
    """One row per cell: rates, true sizes and failures."""
    heads = ("prompt<br>tokens", "load<br>asked for", "in flight<br>measured", "output<br>tokens",
             "output<br>tokens/s", "steady<br>window", "input<br>tokens/s", "requests/s", "requests", "failed")
    rows = []
    for cell, opens in zip(cells, _opens_group(cells)):
        lengths = cell.distribution("output_tokens")
        length = "–" if lengths is None else f"{lengths.min:g}" if lengths.min == lengths.max else (
            f"{lengths.min:g}–{lengths.max:g}")
        num_failed = sum(cell.errors.values())
        steady = cell.metrics.get("steady_output_throughput")
        why = escape((steady.withheld if steady else None) or "", quote=True)
        values = [escape(cell.load.label), number(cell.value("in_flight_requests")), length,
                  number(cell.value("output_throughput")),
                  f'<span title="{why}">{number(cell.value("steady_output_throughput"))}</span>',
                  number(cell.value("input_throughput")), number(cell.value("request_throughput")),
                  f"{cell.num_done:,}"]
        failed = f'<td class="{"bad" if num_failed else ""}">{num_failed}</td>'
        rows.append(f"<tr{opens}><th scope=row>{_true_size(cell)}</th>" + "".join(f"<td>{v}</td>" for v in values)
                    + failed + "</tr>")
    return grid(heads, rows)


EXTRA = ("goodput", "attainment", "cost", "tokens_per_joule", "gpu_power", "gpu_utilization", "gpu_memory",
         "cached_tokens", "queue_delay")


def extras_table(view: ReportView) -> str:
    """Goodput, cost, energy and what else not every run has; of distributions the median. Empty without any."""
    defined = {m.name: m for m in view.result.metrics}
    shown = [name for name in EXTRA if name in defined and any(_single(c, name) is not None for c in view.cells)]
    if not set(shown) - {"queue_delay", "cached_tokens"}:
        return ""
    heads = ["cell", *(f"{escape(defined[n].title)}<br>{escape(defined[n].unit)}" for n in shown)]
    rows = [f"<tr><th scope=row>{escape(c.id)}</th>" + "".join(f"<td>{number(_single(c, n))}</td>" for n in shown)
            + "</tr>" for c in view.cells]
    return grid(heads, rows)


def _single(cell: CellResult, metric: str) -> float | None:
    found = cell.distribution(metric)
    return cell.value(metric) if found is None else found.p50


def client_table(cells: Sequence[CellResult]) -> str:
    """The client's own error and load, cell by cell. Empty where nothing is known."""
    known = [(cell, cell.client) for cell in cells if cell.client is not None]
    if not known:
        return ""
    heads = ("cell", "processes", "busiest<br>core", "loop late<br>P99 ms", "calibrated at<br>streams",
             "error of TTFT<br>P50 / P99 ms", "error of a gap<br>P50 / P99 ms")
    rows = [f"<tr><th scope=row>{escape(cell.id)}</th>" + "".join(f"<td>{v}</td>" for v in _client_row(client))
            + "</tr>" for cell, client in known]
    return grid(heads, rows, "The client itself")


def _client_row(client: ClientLoad) -> list[str]:
    error = client.calibration
    lag = None if client.loop_lag_p99_us is None else client.loop_lag_p99_us / 1e3
    found = [f"{client.num_workers}", f"{100 * max(client.cpu_share, default=0):.0f} %", number(lag)]
    if error is None:
        return [*found, "not calibrated", "–", "–"]
    return [*found, f"{error.concurrency}", f"{error.ttft_p50_us / 1e3:.2f} / {error.ttft_p99_us / 1e3:.2f}",
            f"{error.itl_p50_us / 1e3:.2f} / {error.itl_p99_us / 1e3:.2f}"]


def search_steps(search: SearchResult) -> str:
    """What a search tried, in order."""
    unit = {"concurrency": "in flight", "request_rate": "requests/s"}[search.variable]
    rows = [f"<tr><th scope=row>{step.level:,.4g}</th><td>{search.outcome(step)}</td>"
            f'<td class="names">{escape(step.reason)}</td></tr>' for step in search.steps]
    return grid((unit, "", "why"), rows, "Levels in the order in which they were tried")


def findings_list(result: RunResult) -> str:
    """The audit's findings, the gravest first."""
    if not result.findings:
        return '<p class="clean">The audit found nothing to hold against these figures.</p>'
    items = []
    for finding in result.findings:
        items.append(
            f'<li class="{finding.severity}"><p><span class="tag">{SEVERITY_TITLES[finding.severity]}</span> '
            f"<code>{escape(finding.name)}</code></p><p>{escape(finding.evidence)}.</p>"
            f'<p class="advice">{escape(finding.advice)}</p></li>')
    return f'<ul class="findings">{"".join(items)}</ul>'


def definitions(result: RunResult, percentile_rule: str) -> str:
    """Every metric with formula and unit."""
    items = [f"<dt>{escape(m.title)} <span>{escape(m.unit)}</span></dt><dd><code>{escape(m.formula)}</code>"
             f"<p>{escape(m.definition)}</p></dd>" for m in result.metrics]
    return f"<p>{escape(percentile_rule)}</p><dl>{''.join(items)}</dl>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of names and values."""
    return "<dl class=facts>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>"
                                        for k, v in pairs) + "</dl>"
