"""Which figures of a cell are compared: METRIC_STAT for distributions, METRIC for single values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pelton.bench.metrics.metric import Metric, Sample
from pelton.bench.metrics.registry import all_metrics, find_metric
from pelton.bench.results import Analysis, CellResult, MetricResult, Percentile, RequestRecord
from pelton.bench.stage import stage_results
from pelton.bench.window import find_windows
from pelton.errors import ConfigError

STATS = ("p50", "p90", "p95", "p99", "p99.9", "mean")
SHOWN_STATS = ("p50", "p95", "p99")
HIGHER_IS_BETTER = {"output_throughput", "input_throughput", "total_throughput", "steady_output_throughput",
                    "steady_input_throughput", "steady_total_throughput", "request_throughput", "goodput", "attainment",
                    "request_output_rate", "decode_rate", "tokens_per_joule"}
LOWER_IS_BETTER = {"errors", "cost"}  # and everything in milliseconds
Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Figure:
    """One number of a cell."""

    metric: Metric
    stat: str | None
    """None: the metric is a single value."""

    @property
    def name(self) -> str:
        return self.metric.name if self.stat is None else f"{self.metric.name}_{self.stat}"

    @property
    def title(self) -> str:
        stat = "" if self.stat is None else f", {self.stat.upper() if self.stat.startswith('p') else self.stat}"
        return self.metric.title + stat

    @property
    def better(self) -> Direction | None:
        """Which way is an improvement; none: neither."""
        if self.metric.name in HIGHER_IS_BETTER:
            return "higher"
        if self.metric.unit == "ms" or self.metric.name in LOWER_IS_BETTER:
            return "lower"
        return None

    def read(self, found: MetricResult | None) -> Percentile | str:
        """The figure with its interval, or why there is none."""
        if found is None:
            return "the metric is not in the result"
        if found.withheld is not None:
            return found.withheld
        if self.stat is None:
            return Percentile(value=found.value, low=None, high=None)
        if self.stat == "mean":
            return Percentile(value=found.distribution.mean, low=None, high=None)
        if self.stat in found.distribution.percentiles:
            return found.distribution.percentiles[self.stat]
        return f"{self.stat.upper()} needs {found.distribution.missing[self.stat]} more samples"


def parse_figure(name: str) -> Figure:
    """`ttft_p95`, `output_throughput`, ... to the figure.

    Raises:
        ConfigError: no such metric, or a statistic that it does not have.
    """
    if (metric := find_metric(name)) is not None:
        if metric.is_distribution:
            raise ConfigError(f"{name} is a distribution; name one of its statistics, such as {name}_p95 "
                              f"({', '.join(STATS)})")
        return Figure(metric, None)
    base, _, stat = name.rpartition("_")
    metric = find_metric(base)
    if metric is None or not metric.is_distribution or stat not in STATS:
        known = ", ".join(f"{m.name}_p95" if m.is_distribution else m.name for m in all_metrics())
        raise ConfigError(f"{name!r} is no figure of a benchmark; known: {known}, and other statistics of the "
                          f"distributions ({', '.join(STATS)})")
    return Figure(metric, stat)


def compared_figures() -> Iterator[Figure]:
    """All figures of which one way is better."""
    for metric in all_metrics():
        for stat in STATS if metric.is_distribution else (None,):
            figure = Figure(metric, stat)
            if figure.better is not None:
                yield figure


class Trials:
    """The trials of one cell, each measured by itself; a metric is computed once for all its statistics.

    Attributes:
        load: the cell's.
        samples: the requests of each trial.
    """

    def __init__(self, cell: CellResult, measured: Sequence[RequestRecord], analysis: Analysis) -> None:
        by_trial: dict[int, list[RequestRecord]] = defaultdict(list)
        for record in measured:
            by_trial[record.trial].append(record)
        self.load = cell.load
        self.samples = [Sample(by_trial[trial], cell.is_stream, windows=find_windows(cell.load, by_trial[trial]),
                               analysis=analysis) for trial in sorted(by_trial)]
        self._results: dict[str, list[MetricResult]] = {}

    def read(self, figure: Figure) -> list[float | None]:
        """The figure of each trial, in order; none where the trial has too few samples for it."""
        metric = figure.metric
        if metric.name not in self._results:
            self._results[metric.name] = [metric.measure(sample) for sample in self.samples]
        return _values(figure, self._results[metric.name])


class StageTrials:
    """One stage of the trials of one cell."""

    def __init__(self, trials: Trials, name: str) -> None:
        stages = (stage for sample in trials.samples for stage in stage_results(trials.load, sample))
        self._metrics = [stage.metrics for stage in stages if stage.name == name]

    def read(self, figure: Figure) -> list[float | None]:
        """The figure of each trial that came to this stage, in order."""
        return _values(figure, [metrics.get(figure.metric.name) for metrics in self._metrics])


def _values(figure: Figure, results: Sequence[MetricResult | None]) -> list[float | None]:
    found = [figure.read(result) for result in results]
    return [None if isinstance(value, str) else value.value for value in found]
