"""The report's tables, findings and definitions as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pelton.bench.results import CellResult, Distribution, Percentile, RunResult
from pelton.bench.table import number

PERCENTS = (50, 90, 95, 99)
SEVERITY_TITLES = {"failure": "Failure", "warning": "Warning", "note": "Note"}


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


def _cell_row(cell: CellResult, metrics: list[tuple[bool, str]], opens: str) -> str:
    sizes = cell.distribution("prompt_tokens")
    true = f"{sizes.p50:g}" if sizes is not None else "–"
    if true != str(cell.requested_prompt_tokens):
        true += f' <span class="asked">of {cell.requested_prompt_tokens} asked for</span>'
    texts = [f"<th scope=row>{true}</th>", f"<td>{escape(cell.load.label)}</td>",
             f"<td>{number(cell.value('in_flight_requests'))}</td>"]
    for is_distribution, name in metrics:
        if is_distribution:
            texts += [_percentile(cell.distribution(name), p, cell.metrics[name].withheld) for p in PERCENTS]
        else:
            texts.append(f"<td>{number(cell.value(name))}</td>")
    return f"<tr{opens}>{''.join(texts)}</tr>"


def _percentile(found: Distribution | None, percent: int, withheld: str | None) -> str:
    if found is None:
        return f'<td class="none" title="{escape(withheld or "", quote=True)}">–</td>'
    name = f"p{percent}"
    if name in found.missing:
        return f'<td class="thin" title="P{percent} needs {found.missing[name]} more samples">–</td>'
    return f'<td title="{_interval(found.percentiles[name])}">{number(found.value(name))}</td>'


def _interval(found: Percentile) -> str:
    low = "?" if found.low is None else number(found.low)
    high = "?" if found.high is None else number(found.high)
    return f"95 % confidence: {low} to {high}"


def throughput_table(cells: Sequence[CellResult]) -> str:
    """One row per cell: rates, true sizes and failures."""
    heads = ("prompt<br>tokens", "load<br>asked for", "in flight<br>measured", "output<br>tokens",
             "output<br>tokens/s", "input<br>tokens/s", "requests/s", "requests", "failed")
    rows = []
    for cell, opens in zip(cells, _opens_group(cells)):
        sizes, lengths = cell.distribution("prompt_tokens"), cell.distribution("output_tokens")
        length = "–" if lengths is None else f"{lengths.min:g}" if lengths.min == lengths.max else (
            f"{lengths.min:g}–{lengths.max:g}")
        num_failed = sum(cell.errors.values())
        values = [escape(cell.load.label), number(cell.value("in_flight_requests")), length,
                  number(cell.value("output_throughput")), number(cell.value("input_throughput")),
                  number(cell.value("request_throughput")), f"{cell.num_done}"]
        failed = f'<td class="{"bad" if num_failed else ""}">{num_failed}</td>'
        rows.append(f"<tr{opens}><th scope=row>{'–' if sizes is None else f'{sizes.p50:g}'}</th>"
                    + "".join(f"<td>{v}</td>" for v in values) + failed + "</tr>")
    head = "".join(f"<th scope=col>{h}</th>" for h in heads)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


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
