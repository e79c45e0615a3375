"""What a metric is: a declaration with a function from a cell's requests to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pelton.bench.percentiles import summarize
from pelton.bench.results import MetricDefinition, MetricResult, RequestRecord


class Withheld(Exception):
    """The metric has no meaning for this cell; the text says why."""


@dataclass(frozen=True)
class Sample:
    """The measured requests of one cell, warm-up left out."""

    requests: Sequence[RequestRecord]
    is_stream: bool

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

    def streamed(self) -> list[RequestRecord]:
        """Good requests whose text arrived in chunks.

        Raises:
            Withheld: the cell did not stream.
        """
        if not self.is_stream:
            raise Withheld("the answers were not streamed")
        return [r for r in self.ok if r.content_us]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's declaration. `compute` returns samples for a distribution, else one number."""

    name: str
    title: str
    unit: str
    formula: str
    definition: str
    compute: Callable[[Sample], list[float] | float]
    is_distribution: bool
    order: int
    """Position in tables and reports."""

    def measure(self, sample: Sample) -> MetricResult:
        """Computes the metric, or says why it cannot be had."""
        if not sample.requests:
            return MetricResult(withheld="no request ended")
        try:
            found = self.compute(sample)
        except Withheld as reason:
            return MetricResult(withheld=str(reason))
        if not self.is_distribution:
            return MetricResult(value=float(found))
        return MetricResult(distribution=summarize(found)) if found else MetricResult(withheld="no samples")

    def describe(self) -> MetricDefinition:
        return MetricDefinition(name=self.name, title=self.title, unit=self.unit, formula=self.formula,
                                definition=self.definition, is_distribution=self.is_distribution)
