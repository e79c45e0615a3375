"""What a comparison says, as records. The first result is the base; every other is held against it."""

from __future__ import annotations

from typing import Any, Literal

from pelton.bench.results import Record

SCHEMA = "pelton.bench.compare/1"

Says = Literal["better", "worse", "changed", "no difference shown", "not known"]
Outcome = Literal["passed", "failed", "not known"]
Method = Literal["paired trials", "trials", "percentile intervals", "none"]


class Side(Record, kw_only=True):
    """One of the results compared."""

    name: str
    path: str
    server: str
    model: str
    protocol: str
    endpoint: str
    extra_inputs: dict[str, Any]
    """Further fields of every request."""
    started_at: str
    workload: str
    """Hash of what was asked for; equal hashes are equal workloads."""
    differences: list[str]
    """How its workload differs from the base's; empty where it is the same."""
    status: str
    verdicts: dict[str, str]
    """Cell -> what the audit says of it."""
    failures: dict[str, list[str]]
    """Cell that the audit failed -> the names of the findings that failed it."""


class Effect(Record, kw_only=True):
    """How one figure of one cell, or of one stage of it, differs from the base's. Wherever there is a change, it is
    other / base - 1."""

    metric: str
    """As rules name it: METRIC_STAT, such as ttft_p95, or METRIC alone."""
    title: str
    unit: str
    base: float | None
    """From trials (see method) the geometric mean of the trials' figures; else of the requests of all trials."""
    other: float | None
    """The same of the other side."""
    change: float | None
    """Relative: 0.1 is 10 % more than the base."""
    low: float | None
    """Lower end of the change's 95 % confidence interval; none: it cannot be told."""
    high: float | None
    method: Method
    says: Says
    note: str = ""
    """Why there is no change or no interval."""

    @property
    def difference(self) -> float | None:
        """Other minus base, in the metric's unit."""
        return None if self.base is None or self.other is None else self.other - self.base

    @property
    def is_from_trials(self) -> bool:
        return self.method in ("paired trials", "trials")

    @property
    def is_rise_from_zero(self) -> bool:
        """It has no ratio, and exceeds every percentage."""
        return self.base == 0 and self.other is not None and self.other > 0


class CellComparison(Record, kw_only=True):
    """One cell of one result, or one stage of it, against the base's."""

    cell: str
    stage: str | None = None
    """A stage of the cell's load, as it was measured; none: the whole cell."""
    other: str
    """Name of the side."""
    label: str
    different_work: list[str]
    """Where the cells did different work though the same was asked for: latencies do not compare."""
    effects: list[Effect]


class RuleOutcome(Record, kw_only=True):
    """One rule held against one cell."""

    rule: str
    other: str
    cell: str
    outcome: Outcome
    reason: str


class Comparison(Record, kw_only=True):
    """Everything one `pelton bench compare` says."""

    schema: str
    sides: list[Side]
    """The base first."""
    is_forced: bool = False
    """Compared although the workloads differ."""
    cells: list[CellComparison]
    rules: list[RuleOutcome]

    @property
    def base(self) -> Side:
        return self.sides[0]

    @property
    def broken(self) -> list[RuleOutcome]:
        """Rules that failed or could not be judged."""
        return [r for r in self.rules if r.outcome != "passed"]
