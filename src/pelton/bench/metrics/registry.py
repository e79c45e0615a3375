"""Finds the metrics: every module of this package that declares METRIC."""

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
    found = [module.METRIC for module in modules if hasattr(module, "METRIC")]
    assert len({m.name for m in found}) == len(found), "two metrics share a name"
    return tuple(sorted(found, key=lambda m: (m.order, m.name)))
