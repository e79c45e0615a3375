"""The audit: what in a result does not mean what it seems to.

Each check reads a result and yields findings: a name, the evidence, what to do. The checks know only the records, not
how they were made.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from pelton.bench.metrics.itl import MAX_TOKENS_PER_CHUNK
from pelton.bench.percentiles import num_samples_needed
from pelton.bench.results import CellResult, Finding, RequestRecord, RunResult

SEVERITIES = ("failure", "warning", "note")

MIN_SHARE_OF_CONCURRENCY = 0.75  # of the asked-for concurrency, as a mean over the cell's time
MAX_SHARE_OF_BUNCHED_CHUNKS = 0.2
MAX_SHARE_OF_ERRORS = 0.1
SHOWN_PERCENTILES = (95, 99)


class View:
    """A result with its measured requests by cell."""

    def __init__(self, result: RunResult) -> None:
        self.cells = result.cells
        self.target = result.target
        self.workload = result.workload
        self.skipped_cells = result.skipped_cells
        self.stop_reason = result.stop_reason
        self._measured: dict[str, list[RequestRecord]] = defaultdict(list)
        for record in result.requests:
            if not record.is_warmup:
                self._measured[record.cell].append(record)

    def measured(self, cell: CellResult) -> list[RequestRecord]:
        return self._measured[cell.id]

    def good(self, cell: CellResult) -> list[RequestRecord]:
        """Measured requests that were answered in full."""
        return [r for r in self._measured[cell.id] if r.is_ok]


Check = Callable[[View], Iterator[Finding]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Registers a check."""
    CHECKS.append(function)
    return function


def audit(result: RunResult) -> list[Finding]:
    """All findings, the gravest first."""
    view = View(result)
    found = [finding for function in CHECKS for finding in function(view)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _join(items: list[str], most: int = 4) -> str:
    """At most `most` items and how many more there are."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _spread(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


@check
def concurrency_not_reached(view: View) -> Iterator[Finding]:
    """Fewer requests than slots, or a client or server too slow to keep them filled."""
    few = [c for c in view.cells if c.concurrency is not None and c.num_done and c.peak_in_flight < c.concurrency]
    if few:
        evidence = [f"{c.id}: {c.num_requests} requests asked for, at most {c.peak_in_flight} in flight of "
                    f"{c.concurrency}" for c in few]
        yield Finding(name="concurrency_not_reached", severity="failure", cells=[c.id for c in few],
                      evidence=_join(evidence),
                      advice="Give num_requests of at least twice the concurrency; until then read these cells as "
                             "the number in flight that was measured.")
    thin = [c for c in view.cells if c.concurrency is not None and c not in few and c.num_done
            and (c.value("in_flight_requests") or 0.0) < MIN_SHARE_OF_CONCURRENCY * c.concurrency]
    if thin:
        evidence = [f"{c.id}: {c.value('in_flight_requests'):.1f} in flight on average of {c.concurrency}"
                    for c in thin]
        yield Finding(name="concurrency_thin", severity="warning", cells=[c.id for c in thin],
                      evidence=_join(evidence),
                      advice="The run-out at the end, or the client's own work between two requests, weighs too "
                             "much: give more requests per cell; the figures hold for the number measured.")


@check
def prompt_sizes_collapsed(view: View) -> Iterator[Finding]:
    """Several asked-for prompt sizes that were one and the same true size."""
    asked_by_true: dict[int, set[int]] = defaultdict(set)
    cells_by_true: dict[int, list[str]] = defaultdict(list)
    for cell in view.cells:
        if (sizes := cell.distribution("prompt_tokens")) is not None:
            asked_by_true[round(sizes.p50)].add(cell.requested_prompt_tokens)
            cells_by_true[round(sizes.p50)].append(cell.id)
    collapsed = {true: sorted(asked) for true, asked in asked_by_true.items() if len(asked) > 1}
    if collapsed:
        evidence = [f"sizes {', '.join(map(str, asked))} were all {true} tokens" for true, asked in collapsed.items()]
        yield Finding(name="prompt_sizes_collapsed", severity="failure",
                      cells=[cell for true in collapsed for cell in cells_by_true[true]], evidence=_join(evidence),
                      advice="These cells measured the same thing; ask for sizes above the template's floor.")


@check
def prompt_tokens_disagree(view: View) -> Iterator[Finding]:
    """The server counted prompts otherwise than the client."""
    cells, evidence = [], []
    for cell in view.cells:
        counted = [r for r in view.good(cell) if r.server_prompt_tokens is not None]
        wrong = [r for r in counted if r.server_prompt_tokens != r.client_prompt_tokens]
        if wrong:
            cells.append(cell.id)
            evidence.append(f"{cell.id}: {len(wrong)} of {len(counted)} prompts of {cell.requested_prompt_tokens} "
                            f"tokens counted as {_spread([r.server_prompt_tokens for r in wrong])}")
    if cells:
        yield Finding(name="prompt_tokens_disagree", severity="warning", cells=cells, evidence=_join(evidence),
                      advice="All figures use the server's count. Check that tokenizer is the served model's own.")


@check
def usage_missing(view: View) -> Iterator[Finding]:
    """Token counts that are the client's own."""
    cells, evidence = [], []
    for cell in view.cells:
        good = view.good(cell)
        num_missing = sum(r.server_prompt_tokens is None or r.output_tokens_source == "client" for r in good)
        if num_missing:
            cells.append(cell.id)
            evidence.append(f"{cell.id}: {num_missing} of {len(good)} answers")
    if cells:
        yield Finding(name="usage_missing", severity="warning", cells=cells, evidence=_join(evidence),
                      advice="The server sent no usage, so tokens were counted with the client's tokenizer and "
                             "cached prompts cannot be noticed. Use a server that reports usage "
                             "(stream_options.include_usage).")


@check
def output_lengths_differ(view: View) -> Iterator[Finding]:
    """Requests that generated another number of tokens than asked for."""
    cells, evidence = [], []
    for cell in view.cells:
        good = view.good(cell)
        off = [r for r in good if r.output_tokens != r.requested_output_tokens]
        if off:
            cells.append(cell.id)
            got, asked = (_spread([getattr(r, name) for r in off]) for name in ("output_tokens",
                                                                                "requested_output_tokens"))
            evidence.append(f"{cell.id}: {len(off)} of {len(good)} answers had {got} tokens instead of {asked}")
    if cells:
        yield Finding(name="output_lengths_differ", severity="warning", cells=cells, evidence=_join(evidence),
                      advice="End-to-end latency and decode time of these cells compare different work; compare time "
                             "per output token instead, or use a server that takes ignore_eos and min_tokens.")


@check
def prompts_cached(view: View) -> Iterator[Finding]:
    """More cached prompt tokens than the chat template can account for."""
    cells, evidence = [], []
    for cell in view.cells:
        reported = [r for r in view.good(cell) if r.cached_tokens is not None]
        hits = [r for r in reported if r.cached_tokens > view.target.template_tokens]
        if hits:
            share = sum(r.cached_tokens for r in hits) / sum(r.prompt_tokens for r in hits)
            cells.append(cell.id)
            evidence.append(f"{cell.id}: {len(hits)} of {len(reported)} prompts, {share:.0%} of their tokens")
    if cells:
        yield Finding(name="prompts_cached", severity="failure", cells=cells, evidence=_join(evidence),
                      advice="Time to first token is not that of a whole prefill. Use another seed, or switch the "
                             "server's prefix cache off.")


@check
def chunks_are_not_tokens(view: View) -> Iterator[Finding]:
    """Chunks that carry several tokens, or that arrive in bunches."""
    merged, bunched = {}, {}
    for cell in view.cells:
        good = [r for r in view.good(cell) if r.is_stream and r.content_us]
        num_chunks = sum(len(r.content_us) for r in good)
        if not num_chunks:
            continue
        ratio = sum(r.output_tokens for r in good) / num_chunks
        if ratio > MAX_TOKENS_PER_CHUNK:
            merged[cell.id] = f"{cell.id}: {ratio:.2f} tokens per chunk"
        gaps = [b - a for r in good for a, b in pairwise(r.content_us)]
        share = sum(gap == 0 for gap in gaps) / len(gaps) if gaps else 0.0
        if share > MAX_SHARE_OF_BUNCHED_CHUNKS:
            bunched[cell.id] = f"{cell.id}: {share:.0%} of the chunks arrived together with the one before"
    if merged:
        yield Finding(name="chunks_are_not_tokens", severity="warning", cells=list(merged),
                      evidence=_join(list(merged.values())),
                      advice="Inter-token latency is withheld for these cells; read time per output token.")
    if bunched:
        yield Finding(name="chunks_arrive_bunched", severity="warning", cells=list(bunched),
                      evidence=_join(list(bunched.values())),
                      advice="The server or the network sends several chunks at once: low percentiles of inter-token "
                             "latency are zeros, high ones several tokens; read time per output token.")


@check
def first_token_invisible(view: View) -> Iterator[Finding]:
    """Good streamed answers without any text, which have no time to first token."""
    cells, evidence = [], []
    for cell in view.cells:
        good = view.good(cell) if cell.is_stream else []
        num_silent = sum(r.first_content_us is None for r in good)
        if num_silent:
            cells.append(cell.id)
            evidence.append(f"{cell.id}: {num_silent} of {len(good)} answers")
    if cells:
        yield Finding(name="first_token_invisible", severity="warning", cells=cells, evidence=_join(evidence),
                      advice="These answers held no text and are missing from time to first token and decode time.")


@check
def requests_failed(view: View) -> Iterator[Finding]:
    """Failed requests, which are left out of every latency."""
    for severity in ("failure", "warning"):
        cells, evidence = [], []
        for cell in view.cells:
            num_failed = sum(cell.errors.values())
            is_grave = num_failed > MAX_SHARE_OF_ERRORS * cell.num_done
            if num_failed and is_grave == (severity == "failure"):
                kinds = ", ".join(f"{n} × {kind}" for kind, n in sorted(cell.errors.items()))
                cells.append(cell.id)
                evidence.append(f"{cell.id}: {num_failed} of {cell.num_done} failed ({kinds})")
        if cells:
            failed = [r for c in view.cells if c.id in cells for r in view.measured(c) if r.error is not None]
            messages = Counter(r.error_message for r in failed)
            example = f"; most often: {messages.most_common(1)[0][0]}" if messages else ""
            yield Finding(name="requests_failed", severity=severity, cells=cells, evidence=_join(evidence) + example,
                          advice="Latencies are those of the requests that survived, and a server that sheds load "
                                 "looks fast. Find the cause, or lower the load.")


@check
def requests_resent(view: View) -> Iterator[Finding]:
    """Requests whose first sending met a closed connection."""
    cells, evidence = [], []
    for cell in view.cells:
        num_resent = sum(r.was_resent for r in view.measured(cell))
        if num_resent:
            cells.append(cell.id)
            evidence.append(f"{cell.id}: {num_resent} of {cell.num_done} requests")
    if cells:
        yield Finding(name="requests_resent", severity="warning", cells=cells, evidence=_join(evidence),
                      advice="The server closed kept-open connections without an answer, and the requests were sent "
                             "once more. Either it closes idle connections early, or it drops requests.")


@check
def too_few_samples(view: View) -> Iterator[Finding]:
    """Percentiles that rest on less than one expected sample beyond them."""
    counts = {c.id: c.metrics["e2e_latency"].distribution.num_samples for c in view.cells
              if c.distribution("e2e_latency") is not None}
    few = {cell: n for cell, n in counts.items() if n < num_samples_needed(max(SHOWN_PERCENTILES))}
    if few:
        least = min(few.values())
        thin = [p for p in SHOWN_PERCENTILES if least < num_samples_needed(p)]
        needs = " and ".join(f"P{p} needs {num_samples_needed(p)}" for p in thin)
        yield Finding(name="too_few_samples", severity="note", cells=list(few),
                      evidence=f"{len(few)} cells have {_spread(list(few.values()))} good requests each; {needs}",
                      advice="These percentiles are withheld: they would be little more than the largest sample. "
                             "Give more num_requests.")


@check
def output_control_refused(view: View) -> Iterator[Finding]:
    """The server does not take the fields that fix the output length."""
    if view.workload.fixed_output and view.target.output_control != "ignore_eos+min_tokens":
        yield Finding(name="output_control_refused", severity="note", cells=[],
                      evidence=f"the output length was asked for by {view.target.output_control} alone",
                      advice="Answers may end early; see output_lengths_differ.")


@check
def template_corrected(view: View) -> Iterator[Finding]:
    """The server's template is a constant number of tokens away from the tokenizer's own."""
    correction = view.target.frame_correction_tokens
    if correction:
        yield Finding(name="template_corrected", severity="note", cells=[],
                      evidence=f"the server counts {correction:+d} tokens for every prompt compared to the tokenizer "
                               f"in {view.target.tokenizer}",
                      advice="Prompts were sized by the server's count. Another chat template or special token is "
                             "the likely reason.")


@check
def first_tokens_repeat(view: View) -> Iterator[Finding]:
    """More prompts than the vocabulary has words to begin with."""
    if not view.workload.first_tokens_unique:
        yield Finding(name="first_tokens_repeat", severity="note", cells=[],
                      evidence="the run has more prompts than distinct first tokens; prompts differ within their "
                               "first two content tokens",
                      advice="A prefix cache holds at most one content token beyond the template.")


@check
def cells_cut_short(view: View) -> Iterator[Finding]:
    """Cells with fewer requests than asked for, and cells never run."""
    short = [c for c in view.cells if c.status == "partial"]
    if short:
        evidence = [f"{c.id}: {c.num_done}{'' if c.num_requests is None else f' of {c.num_requests}'} requests"
                    + (f", {c.stop_reason}" if c.stop_reason else "") for c in short]
        yield Finding(name="cells_cut_short", severity="warning", cells=[c.id for c in short],
                      evidence=_join(evidence), advice="Their figures rest on fewer requests than the others'.")
    if view.skipped_cells:
        why = view.stop_reason or "the time budget was spent"
        yield Finding(name="cells_skipped", severity="warning", cells=list(view.skipped_cells),
                      evidence=f"{len(view.skipped_cells)} cells were not run: {why}",
                      advice="Give a larger duration_budget or fewer cells.")
