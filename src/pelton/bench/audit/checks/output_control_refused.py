"""The server does not take the fields that fix the output length."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    if view.workload.fixed_output and view.target.output_control != "ignore_eos+min_tokens":
        yield Finding(name="output_control_refused", severity="note", cells=[],
                      evidence=f"the output length was asked for by {view.target.output_control} alone",
                      advice="Answers may end early; see output_lengths_differ.")
