"""The server's template is a constant number of tokens away from the tokenizer's own."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View
from pelton.bench.counted import counted
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    correction = view.target.frame_correction_tokens
    if correction:
        gap = ("+" if correction > 0 else "") + counted(correction, "token")
        yield Finding(name="template_corrected", severity="note", cells=[],
                      evidence=f"the server counts {gap} for every prompt compared to the tokenizer in "
                               f"{view.target.tokenizer}",
                      advice="Prompts were sized by the server's count. Another chat template or special token is "
                             "the likely reason.")
