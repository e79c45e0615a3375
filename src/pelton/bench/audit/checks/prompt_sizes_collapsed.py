"""Several asked-for prompt sizes that were one and the same true size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pelton.bench.audit.view import View, join
from pelton.bench.counted import counted
from pelton.bench.results import Finding


def check(view: View) -> Iterator[Finding]:
    asked_by_true: dict[int, set[int]] = defaultdict(set)
    cells_by_true: dict[int, list[str]] = defaultdict(list)
    for cell in view.cells:
        if cell.has_fixed_sizes and (sizes := cell.distribution("prompt_tokens")) is not None:
            asked_by_true[round(sizes.p50)].add(cell.requested_prompt_tokens)
            cells_by_true[round(sizes.p50)].append(cell.id)
    collapsed = {true: sorted(asked) for true, asked in asked_by_true.items() if len(asked) > 1}
    if collapsed:
        evidence = [f"sizes {', '.join(map(str, asked))} were all {counted(true, 'token')}"
                    for true, asked in collapsed.items()]
        yield Finding(name="prompt_sizes_collapsed", severity="failure",
                      cells=[cell for true in collapsed for cell in cells_by_true[true]], evidence=join(evidence),
                      advice="These cells measured the same thing; ask for sizes above the template's floor.")
