"""Good streamed answers without any text, or with none but reasoning, which have no time to first token."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding

MAX_SHARE_EMPTY = 0.01  # of the answers, where their length was fixed: beyond it P99 is of those that worked


def check(view: View) -> Iterator[Finding]:
    none, few, reasoning = {}, {}, {}
    for cell in view.cells:
        good = view.good(cell) if cell.is_stream else []
        num_empty = sum(not r.content_us for r in good)
        num_reasoning = sum(r.first_content_us is None for r in good) - num_empty
        if num_empty:
            is_many = view.workload.fixed_output and num_empty > MAX_SHARE_EMPTY * len(good)
            (none if is_many else few)[cell.id] = f"{num_empty} of {len(good)} answers"
        if num_reasoning:
            reasoning[cell.id] = f"{num_reasoning} of {len(good)} answers"
    advice = ("These answers held no text and are missing from all times of tokens, and met no latency target. Look "
              "into the server's log: a server that is full, or a wrong template, may answer so.")
    yield from report("answers_empty", "failure", none, advice)
    yield from report("answers_empty", "warning", few, advice)
    yield from report("first_token_invisible", "warning", reasoning,
                      "These answers held nothing but reasoning and are missing from time to first token, which is of "
                      "the answer itself: ask for more output tokens, or read the time to the first reasoning.")
