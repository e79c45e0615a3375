"""Prompts that were made alike, so that a prefix cache can answer for the model."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    spec = view.workload.prompt_spec
    if spec.source == "repeat":
        yield Finding(
            name="prompts_repeat", severity="warning", cells=[],
            evidence="every prompt repeats the same text, as was asked for",
            advice="With a prefix cache, time to first token and input throughput are those of a look-up, whether the "
                   "server tells or not. Use prompts that are unlike each other.")
    elif not spec.is_unique:
        yield Finding(
            name="prompts_may_begin_alike", severity="note", cells=[],
            evidence=f"the prompts of {spec.file} were sent as they are, some perhaps more than once",
            advice="What they share a prefix cache may hold; leave unique_prompts on to measure whole prefills.")
