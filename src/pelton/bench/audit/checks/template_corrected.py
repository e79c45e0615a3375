"""The server's template is a constant number of tokens away from the tokenizer's own."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    correction = view.target.frame_correction_tokens
    if correction:
        yield Finding(name="template_corrected", severity="note", cells=[],
                      evidence=f"the server counts {correction:+d} tokens for every prompt compared to the tokenizer "
                               f"in {view.target.tokenizer}",
                      advice="Prompts were sized by the server's count. Another chat template or special token is "
                             "the likely reason.")
