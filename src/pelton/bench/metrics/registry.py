"""Finds the metrics: every module of this package that declares METRIC, or METRICS where one has two origins."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from pelton.bench import metrics
from pelton.bench.metrics.metric import Metric


@functools.cache
def all_metrics() -> tuple[Metric, ...]:
    """All metrics in the order in which they are shown."""
    modules = (importlib.import_module(f"{metrics.__name__}.{m.name}") for m in pkgutil.iter_modules(metrics.__path__))
    found = [metric for module in modules for metric in _declared(module)]
    assert len({m.name for m in found}) == len(found), "two metrics share a name"
    return tuple(sorted(found, key=lambda m: (m.order, m.name)))


def find_metric(name: str) -> Metric | None:
    return next((m for m in all_metrics() if m.name == name), None)


def _declared(module: object) -> tuple[Metric, ...]:
    if hasattr(module, "METRICS"):
        return module.METRICS
    return (module.METRIC,) if hasattr(module, "METRIC") else ()
