"""Counters, gauges and histograms that cost next to nothing to update, shown as Prometheus text.

prometheus-client writes the text; its own histograms walk their buckets under a lock for every observation, which a
server that observes each token cannot afford. One thread (the event loop's) updates and reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Counter:
    """A count that only grows, perhaps one per label value."""

    def __init__(self, name: str, text: str, label: str | None, values: Sequence[str]):
        self.name, self.text, self.label = name, text, label
        self._counts: dict[str, float] = dict.fromkeys(values, 0.0)

    def add(self, amount: float = 1.0, label: str = "") -> None:
        self._counts[label] += amount

    def raise_to(self, total: float) -> None:
        """Takes over a count that is kept elsewhere."""
        self._counts[""] = total

    def family(self) -> Family:
        family = CounterMetricFamily(self.name, self.text, labels=[self.label] if self.label else [])
        for value, count in self._counts.items():
            family.add_metric([value] if self.label else [], count)
        return family


class Gauge:
    """A value that goes up and down; None leaves it out of the text."""

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text
        self.value: float | None = None

    def family(self) -> Family:
        family = GaugeMetricFamily(self.name, self.text)
        if self.value is not None:
            family.add_metric([], self.value)
        return family


class Histogram:
    """How often values fell under each bound."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]):
        assert list(bounds) == sorted(bounds)
        self.name, self.text = name, text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> Family:
        family = HistogramMetricFamily(self.name, self.text)
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))
        family.add_metric([], buckets, self._sum)
        return family


class Registry:
    """The metrics of one server, in order of declaration."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)

    def counter(self, name: str, text: str, *, label: str | None = None, values: Sequence[str] = ("",)) -> Counter:
        """Declares a counter; its name ends in _total. With `label`, all its values are named here and start at 0."""
        assert name.endswith("_total"), name
        return self._add(Counter(name, text, label, values))

    def gauge(self, name: str, text: str) -> Gauge:
        return self._add(Gauge(name, text))

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return self._add(Histogram(name, text, bounds))

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.values():
            yield metric.family()

    def render(self) -> bytes:
        """All metrics in Prometheus text format."""
        return generate_latest(self._collectors)

    def _add(self, metric):  # type: ignore[no-untyped-def]
        assert metric.name not in self._metrics, metric.name
        self._metrics[metric.name] = metric
        return metric
