"""Which effects are shown where room is scarce, and in what words. The JSON holds all."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pelton.bench.compare.records import CellComparison, Comparison, Effect, Side

KEY_FIGURES = ("ttft_p50", "ttft_p95", "ttft_p99", "itl_p50", "itl_p95", "tpot_p50", "e2e_latency_p50",
               "e2e_latency_p95", "output_throughput", "request_throughput", "goodput", "cost")
STAGE_FIGURES = ("steady_output_throughput",)  # whose window is the stage's time; the others of a load are of all of it
FIGURES_OF = "geometric means over the trials where every trial of both sides has one, else of all requests"
METHODS = {
    "paired trials": "geometric means over the trials, t interval of the paired trials' log ratios",
    "trials": "geometric means over the trials, t interval (Welch)",
    "percentile intervals": "of all requests, intervals of the percentiles combined",
    "none": "of all requests, no interval"}


def key_effects(cell: CellComparison) -> list[Effect]:
    """The effects that a table shows; those withheld on both sides are left out."""
    by_name = {e.metric: e for e in cell.effects if e.base is not None or e.other is not None}
    wanted = KEY_FIGURES if cell.stage is None else (*KEY_FIGURES, *STAGE_FIGURES)
    return [by_name[name] for name in wanted if name in by_name]


def extra_inputs(side: Side) -> str:
    """The fields that its requests had beyond the protocol's own."""
    return msgspec.json.encode(side.extra_inputs).decode() if side.extra_inputs else "none"


def remarks(comparison: Comparison) -> Iterator[str]:
    """What a reader must know before the figures."""
    for side in comparison.sides:
        if side.differences:
            yield f"{side.name} measured another workload than {comparison.base.name}: {'; '.join(side.differences)}"
    for cell in comparison.cells:
        if cell.different_work:
            yield f"{cell.other}, {cell.cell}: different work ({'; '.join(cell.different_work)})"
    for side in comparison.sides:
        if side.status != "complete":
            yield f"{side.name} is a partial result"
        if side.failures:
            failed = ", ".join(f"{cell} ({', '.join(names)})" for cell, names in side.failures.items())
            yield f"{side.name}: the audit failed {failed}; see its own report"
    models = {side.model for side in comparison.sides}
    if len(models) > 1:
        yield f"the servers call their models by several names: {', '.join(sorted(models))}"
    effects = [e for cell in comparison.cells for e in key_effects(cell)]
    if any(e.is_from_trials for e in effects):
        yield f"figures are {FIGURES_OF}"
    if any(e.method == "percentile intervals" for e in effects):
        yield ("some intervals come from requests alone and do not hold what differs from run to run; at least 3 "
               "trials (--num-trials) would")
    count = sum(e.low is not None or e.high is not None for e in effects)
    if count > 1:
        yield (f"{count} intervals of 95 % are shown: about {max(round(count / 20), 1)} of them would exclude 0 by "
               "chance alone")
