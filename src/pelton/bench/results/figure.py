"""What was computed of a metric, and what it means."""

from __future__ import annotations

from pelton.bench.results.record import Record


class Percentile(Record):
    """A percentile and its 95 % confidence interval."""

    value: float
    low: float | None
    """None: the samples do not reach far enough to say."""
    high: float | None


class Distribution(Record):
    """Summary of samples; the rules are those of `pelton.bench.percentiles`."""

    num_samples: int
    mean: float
    std: float | None
    """Standard deviation of the samples; none for a single one."""
    min: float
    max: float
    percentiles: dict[str, Percentile]
    """By name: p50, p90, p95, p99, p99.9; only those that have enough samples."""
    missing: dict[str, int]
    """Withheld percentile -> how many more samples it needs."""

    def value(self, name: str) -> float | None:
        """A percentile by name; none where it is withheld."""
        found = self.percentiles.get(name)
        return None if found is None else found.value

    @property
    def p50(self) -> float:
        """The median, which every sample has."""
        return self.percentiles["p50"].value

    @property
    def p90(self) -> float | None:
        return self.value("p90")

    @property
    def p95(self) -> float | None:
        return self.value("p95")

    @property
    def p99(self) -> float | None:
        return self.value("p99")


class MetricResult(Record, kw_only=True):
    """A metric of one cell: a distribution, a single value, or the reason why there is none."""

    distribution: Distribution | None = None
    value: float | None = None
    withheld: str | None = None


class MetricDefinition(Record):
    """What a metric means, carried in every result so that its numbers explain themselves."""

    name: str
    title: str
    unit: str
    formula: str
    definition: str
    is_distribution: bool
