"""More prompts than the vocabulary has words to begin with."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    if not view.workload.first_tokens_unique:
        of_a_trial = "; those of one trial differ in the first" if view.workload.trial_first_tokens_unique else ""
        yield Finding(name="first_tokens_repeat", severity="note", cells=[],
                      evidence="the run has more prompts than distinct first tokens; prompts differ within their "
                               f"first two content tokens{of_a_trial}",
                      advice="A prefix cache holds at most one content token beyond the template.")
