"""What a metric is: a declaration with a function from a cell's requests to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pelton.bench.percentiles import summarize, summarize_clusters
from pelton.bench.results import (
    NO_ANALYSIS,
    Analysis,
    MetricDefinition,
    MetricResult,
    RequestRecord,
    Series,
    Window,
)

Origin = Literal["sent", "scheduled"]
Kind = Literal["value", "samples", "clusters"]


class Withheld(Exception):
    """The metric has no meaning for this cell; the text says why."""


@dataclass(frozen=True)
class Sample:
    """The measured requests of one cell, warm-up left out, and what was watched beside them."""

    requests: Sequence[RequestRecord]
    is_stream: bool
    windows: Sequence[Window] = ()
    """The steady-state window of each trial."""
    analysis: Analysis = NO_ANALYSIS
    series: Sequence[Series] = ()
    series_missing: Sequence[str] = ()
    is_open_loop: bool = False
    """Whether requests came whatever the server did."""
    origin: Origin = "sent"
    """Where a latency begins: when the request was handed to the socket, or when the load's plan wanted it sent."""

    @cached_property
    def ok(self) -> list[RequestRecord]:
        """Requests that were answered in full."""
        return [r for r in self.requests if r.is_ok]

    @property
    def start_us(self) -> int:
        """First request sent."""
        return min(r.sent_us for r in self.requests)

    @property
    def end_us(self) -> int:
        """Last request ended."""
        return max(r.end_us for r in self.requests)

    @property
    def wall_s(self) -> float:
        """Seconds of the load: from the first sending to the last end of each trial; none between trials."""
        return max(sum(end - start for start, end in self.spans_us.values()), 1) / 1e6

    @cached_property
    def spans_us(self) -> dict[int, tuple[int, int]]:
        """Trial -> (first request sent, last request ended)."""
        spans: dict[int, tuple[int, int]] = {}
        for r in self.requests:
            start, end = spans.get(r.trial, (r.sent_us, r.end_us))
            spans[r.trial] = min(start, r.sent_us), max(end, r.end_us)
        return spans

    def start_of(self, request: RequestRecord) -> int:
        """Where this request's latencies begin, in microseconds since the run began."""
        return request.sent_us if self.origin == "sent" else request.scheduled_us

    def streamed(self) -> list[RequestRecord]:
        """Good requests whose text arrived in chunks.

        Raises:
            Withheld: the cell did not stream.
        """
        if not self.is_stream:
            raise Withheld("the answers were not streamed")
        return [r for r in self.ok if r.content_us]


_NOTHING = MetricResult(withheld="no samples")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's declaration.

    `compute` returns one number (value), a number per request or so (samples), or a list of numbers for each request
    (clusters: they belong together, and their confidence intervals say so).
    """

    name: str
    title: str
    unit: str
    formula: str
    definition: str
    compute: Callable[[Sample], float | list[float] | list[list[float]]]
    kind: Kind
    order: int
    """Position in tables and reports."""
    origin: Origin = "sent"

    @property
    def is_distribution(self) -> bool:
        return self.kind != "value"

    def measure(self, sample: Sample) -> MetricResult:
        """Computes the metric, or says why it cannot be had."""
        if not sample.requests:
            return MetricResult(withheld="no request ended")
        try:
            found = self.compute(sample if sample.origin == self.origin else replace(sample, origin=self.origin))
        except Withheld as reason:
            return MetricResult(withheld=str(reason))
        if self.kind == "value":
            return MetricResult(value=float(found))
        if self.kind == "clusters":
            clusters = [cluster for cluster in found if cluster]
            return MetricResult(distribution=summarize_clusters(clusters)) if clusters else _NOTHING
        return MetricResult(distribution=summarize(found)) if found else _NOTHING

    def describe(self) -> MetricDefinition:
        return MetricDefinition(name=self.name, title=self.title, unit=self.unit, formula=self.formula,
                                definition=self.definition, is_distribution=self.is_distribution)

    def from_schedule(self) -> Metric:
        """The same latency from the moment the load's plan wanted the request sent."""
        assert "t(sent)" in self.formula
        return replace(
            self, name=f"{self.name}_scheduled", title=f"{self.title}, from schedule", origin="scheduled",
            order=self.order + 1, formula=self.formula.replace("t(sent)", "t(scheduled)"),
            definition=f"As {self.title.lower()}, but from the moment the load's plan wanted the request sent. It "
                       "holds what the client, or a server that takes no more connections, kept waiting; the "
                       "difference is what coordinated omission hides (Tene 2013).")
