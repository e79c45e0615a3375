"""Everything that one run measured."""

from __future__ import annotations

from typing import Literal

import msgspec

from pelton.bench.results.analysis import NO_ANALYSIS, Analysis, Finding
from pelton.bench.results.cell import CellResult, Status
from pelton.bench.results.figure import MetricDefinition
from pelton.bench.results.record import Record
from pelton.bench.results.request import RequestRecord
from pelton.bench.results.search import SearchResult
from pelton.bench.results.series import Series
from pelton.bench.results.target import Environment, TargetInfo
from pelton.bench.results.workload import Workload

SCHEMA = "pelton.bench/2"


class RunResult(Record, kw_only=True):
    """Everything one `pelton bench serve`, `sweep` or `search` measured over HTTP, or `latency` or `throughput` in this
    process."""

    schema: str
    kind: Literal["serve", "sweep", "search", "latency", "throughput"]
    status: Status
    stop_reason: str | None
    environment: Environment
    target: TargetInfo
    workload: Workload
    duration_s: float
    cells: list[CellResult]
    skipped_cells: list[str]
    search: SearchResult | None = None
    findings: list[Finding]
    metrics: list[MetricDefinition]
    analysis: Analysis = NO_ANALYSIS
    series: list[Series] = msgspec.field(default_factory=list)
    series_missing: list[str] = msgspec.field(default_factory=list)
    """What could not be watched, and why."""
    requests: list[RequestRecord]
