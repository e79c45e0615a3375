"""Token counts that are the client's own."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    for cell in view.cells:
        good = view.good(cell)
        num_missing = sum(r.server_prompt_tokens is None or r.output_tokens_source == "client" for r in good)
        if num_missing:
            evidence[cell.id] = f"{num_missing} of {len(good)} answers"
    yield from report(
        "usage_missing", "warning", evidence,
        "The server sent no usage, so tokens were counted with the client's tokenizer and cached prompts cannot be "
        "noticed. Use a server that reports usage (stream_options.include_usage).")
