"""What `serve` and `sweep` have in common: measure, write the files, print, and end with the right status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from pelton.bench.calibrate import error_table
from pelton.bench.calibration_store import client_errors, level_of
from pelton.bench.cell import CellSpec
from pelton.bench.files import prepare_output_dir, write_result
from pelton.bench.options import ServeOptions, SweepOptions
from pelton.bench.progress import Progress
from pelton.bench.report.page import write_report
from pelton.bench.results import RunResult
from pelton.bench.run import Run, execute, raise_if_failed
from pelton.bench.table import make_console, print_result

OPEN_LOOP_STREAMS = 64
INTERRUPTED = 130  # the exit status shells give to a process ended by Ctrl-C
FILES = ("results.json", "requests.csv", "cells.csv", "report.html")


def measure(kind: Literal["serve", "sweep"], options: ServeOptions | SweepOptions, specs: Sequence[CellSpec]) -> int:
    """Measures the cells and returns the exit status.

    Raises:
        PeltonError: wrong options, an unwritable output_dir, or a server that failed; what was measured is kept.
    """
    directory = None if options.output_dir is None else prepare_output_dir(options.output_dir)
    keep = None if directory is None else (lambda result: write_result(result, directory))
    errors = client_errors(_levels(specs)) if options.calibrate else []
    if errors and not options.prints_json:
        make_console().print(error_table(errors))
    result = execute(Run(kind, options, specs, progress=Progress(is_silent=options.prints_json), keep=keep,
                         client_errors=errors))
    if directory is not None:
        write_result(result, directory)
        write_report(result, directory / "report.html")
    if options.prints_json:
        print_json(_summary(result, directory))
    else:
        print_result(make_console(), result)
        if directory is not None:
            print(f"\nreport   {directory / 'report.html'}\nresults  {directory / 'results.json'}")
    raise_if_failed(result, options.output_dir)
    return INTERRUPTED if result.stop_reason == "interrupted" else 0


def _levels(specs: Sequence[CellSpec]) -> set[int]:
    """Numbers of streams at which the client's error matters; of an open loop nobody knows yet."""
    return {level_of(spec.load.concurrency or OPEN_LOOP_STREAMS) for spec in specs}


def print_json(data: object) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    sys.stdout.flush()


def _summary(result: RunResult, directory: Path | None) -> dict[str, object]:
    """Cells, findings and where the files are; the single requests are in results.json."""
    return {"schema": result.schema, "kind": result.kind, "status": result.status, "stop_reason": result.stop_reason,
            "duration_s": result.duration_s, "target": result.target, "cells": result.cells,
            "skipped_cells": result.skipped_cells, "findings": result.findings,
            "files": {} if directory is None else {name: str(directory / name) for name in FILES}}
