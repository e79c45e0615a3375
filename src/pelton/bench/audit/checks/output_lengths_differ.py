"""Answers of another length than asked for, within a cell or between cells that are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pelton.bench.audit.view import View, report, spread, spread_of
from pelton.bench.results import Finding

MAX_RATIO = 1.02  # between the mean lengths of cells that asked for the same


def check(view: View) -> Iterator[Finding]:
    evidence = {}
    means: dict[int, dict[str, float]] = defaultdict(dict)
    for cell in view.cells:
        good = view.good(cell)
        off = [r for r in good if r.output_tokens != r.requested_output_tokens]
        if off:
            stopped = sum(r.output_tokens < r.requested_output_tokens and r.finish_reason == "stop" for r in off)
            early = f"; {stopped} stopped early by themselves" if stopped else ""
            evidence[cell.id] = (f"{len(off)} of {len(good)} answers had "
                                 f"{spread_of([r.output_tokens for r in off], 'token')} instead of "
                                 f"{spread([r.requested_output_tokens for r in off])}{early}")
        if good and cell.has_fixed_sizes:
            means[cell.requested_output_tokens][cell.id] = sum(r.output_tokens for r in good) / len(good)
    yield from report(
        "output_lengths_differ", "warning", evidence,
        "End-to-end latency and decode time of these cells compare different work; compare time per output token "
        f"instead{'' if view.is_offline else ', or use a server that takes ignore_eos and min_tokens'}.")
    for asked, by_cell in means.items():
        if max(by_cell.values()) > MAX_RATIO * min(by_cell.values()):
            yield from report(
                "cells_compare_different_work", "failure",
                {cell: f"{mean:.1f} of {asked} tokens on average" for cell, mean in by_cell.items()},
                "These cells asked for the same number of tokens and got different ones: their latencies and rates "
                "cannot be compared. Fix the length, or compare time per output token.")
