"""The server counted prompts otherwise than the client."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report, spread, spread_of
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    for cell in view.cells:
        counted = [r for r in view.good(cell) if r.server_prompt_tokens is not None]
        wrong = [r for r in counted if r.server_prompt_tokens != r.client_prompt_tokens]
        if wrong:
            evidence[cell.id] = (f"{len(wrong)} of {len(counted)} prompts of "
                                 f"{spread_of([r.requested_prompt_tokens for r in wrong], 'token')} counted as "
                                 f"{spread([r.server_prompt_tokens for r in wrong])}")
    yield from report("prompt_tokens_disagree", "warning", evidence,
                      "All figures use the server's count. Check that tokenizer is the served model's own.")
