"""A result as CSV: one line per request, per cell, and per stage."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from pelton.bench.results import CellResult, Distribution, MetricDefinition, RequestRecord, RunResult, StageResult


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


REQUEST_COLUMNS = tuple(name for name in RequestRecord.__struct_fields__ if name != "content_us")
LOAD_COLUMNS = ("kind", "concurrency", "rate", "burstiness", "duration_s", "cancellation_rate")
CELL_COLUMNS = ("id", "requested_prompt_tokens", "requested_output_tokens", "is_stream", "num_trials", "num_requests",
                "num_done", "num_cancelled", "peak_in_flight", "status", "stop_reason")
STATISTICS = ("num_samples", "mean", "std", "min", "max")
PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")


def requests_csv(result: RunResult) -> bytes:
    """One line per request; times in microseconds since the run began."""
    rows = [[getattr(r, name) for name in REQUEST_COLUMNS] + [len(r.content_us)] for r in result.requests]
    return _csv([*REQUEST_COLUMNS, "num_content_chunks"], rows)


def cells_csv(result: RunResult) -> bytes:
    """One line per cell; a distribution takes one column per statistic, named metric.statistic [unit]."""
    header = [*CELL_COLUMNS, *(f"load.{name}" for name in LOAD_COLUMNS)]
    rows = [[getattr(c, name) for name in CELL_COLUMNS] + [getattr(c.load, name) for name in LOAD_COLUMNS]
            for c in result.cells]
    return _with_figures(header, rows, result.cells, result.metrics)


def stages_csv(result: RunResult) -> bytes:
    """One line per stage of a piecewise load, in the columns of a cell."""
    stages = [(cell, stage) for cell in result.cells for stage in cell.stages]
    rows = [[cell.id, stage.name, stage.num_done, sum(stage.errors.values()), stage.peak_in_flight]
            for cell, stage in stages]
    return _with_figures(["cell", "stage", "num_done", "num_failed", "peak_in_flight"], rows,
                         [stage for _, stage in stages], result.metrics)


def _with_figures(header: list[str], rows: list[list[Any]], sources: Sequence[CellResult | StageResult],
                  metrics: Sequence[MetricDefinition]) -> bytes:
    for metric in metrics:
        if metric.is_distribution:
            header += [f"{metric.name}.{s}" + ("" if s == "num_samples" else f" [{metric.unit}]") for s in STATISTICS]
            header += [f"{metric.name}.{p}{end} [{metric.unit}]" for p in PERCENTILES for end in ("", ".low", ".high")]
        else:
            header.append(f"{metric.name} [{metric.unit}]")
        for source, row in zip(sources, rows, strict=True):
            if metric.is_distribution:
                found = source.distribution(metric.name)
                row += [None if found is None else getattr(found, s) for s in STATISTICS]
                row += [end for p in PERCENTILES for end in _with_interval(found, p)]
            else:
                row.append(source.value(metric.name))
    return _csv(header, rows)


def _with_interval(found: Distribution | None, name: str) -> tuple[float | None, float | None, float | None]:
    """A percentile and the ends of its interval; nothing where it is withheld."""
    percentile = None if found is None else found.percentiles.get(name)
    return (None, None, None) if percentile is None else (percentile.value, percentile.low, percentile.high)
