"""More cached prompt tokens than the chat template can account for."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    evidence, asked_for = {}, {}
    for cell in view.cells:
        reported = [r for r in view.good(cell) if r.cached_tokens is not None]
        hits = [r for r in reported if r.cached_tokens > view.target.template_tokens + r.prefix_tokens]
        shared = [r for r in reported if r.prefix_tokens and r.cached_tokens > view.target.template_tokens]
        for found, records in ((evidence, hits), (asked_for, [] if hits else shared)):
            if records:
                share = sum(r.cached_tokens for r in records) / sum(r.prompt_tokens for r in records)
                found[cell.id] = f"{len(records)} of {len(reported)} prompts, {share:.0%} of their tokens"
    yield from report(
        "prompts_cached", "failure", evidence,
        "Time to first token is not that of a whole prefill. Use another seed, or switch the server's prefix cache "
        "off.")
    yield from report(
        "shared_prefixes_cached", "note", asked_for,
        "As asked for: the prompts of these cells share prefixes, and their time to first token is that of the rest.")
