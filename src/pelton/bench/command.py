"""What `serve` and `sweep` have in common: measure, write the files, print, and end with the right status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec

from pelton.bench.agenda import Agenda
from pelton.bench.audit import verdicts
from pelton.bench.calibrate import error_table
from pelton.bench.calibration_store import client_errors, level_of
from pelton.bench.client import Address, check_reachable
from pelton.bench.compare.workload import workload_hash
from pelton.bench.files import prepare_output_dir, write_result
from pelton.bench.options import ServeOptions, SweepOptions
from pelton.bench.progress import Progress
from pelton.bench.report.page import write_report
from pelton.bench.results import RunResult
from pelton.bench.resume import earlier_run
from pelton.bench.run import Run, execute, raise_if_failed
from pelton.bench.table import make_console, print_result, search_table
from pelton.errors import ConfigError

OPEN_LOOP_STREAMS = 64
FAILED = 3  # the audit failed a cell, and the command was to be strict
INTERRUPTED = 130  # the exit status shells give to a process ended by Ctrl-C
FILES = ("results.json", "requests.csv", "cells.csv", "report.html")


def measure(kind: Literal["serve", "sweep", "search"], options: ServeOptions | SweepOptions, agenda: Agenda) -> int:
    """Measures what the agenda asks for and returns the exit status.

    Raises:
        PeltonError: wrong options, an unwritable output_dir, or a server that failed; what was measured is kept.
    """
    directory = None if options.output_dir is None else prepare_output_dir(options.output_dir)
    keep = None if directory is None else (lambda result: write_result(result, directory))
    check_reachable(Address.parse(options.url))
    errors = client_errors(_levels(agenda)) if options.calibrate else []
    if errors and not options.prints_json:
        make_console().print(error_table(errors))
    earlier = earlier_run(directory, kind) if getattr(options, "resume", False) else None
    result = execute(Run(kind, options, agenda, progress=Progress(is_silent=options.prints_json), keep=keep,
                         client_errors=errors, earlier=earlier))
    unwritten = None if directory is None else _write(result, directory)
    if options.prints_json:
        print_json(summary_of(result, directory))
    else:
        print_result(make_console(), result)
        if result.search is not None:
            make_console().print(search_table(result))
        if directory is not None and unwritten is None:
            print(f"\nreport   {directory / 'report.html'}\nresults  {directory / 'results.json'}")
    if unwritten is not None:
        raise unwritten
    raise_if_failed(result, options.output_dir)
    if result.stop_reason == "interrupted":
        return INTERRUPTED
    return strict_status(result) if options.strict else 0


def _write(result: RunResult, directory: Path) -> ConfigError | None:
    """Writes the files; what keeps it from writing one is raised when the result has been printed."""
    try:
        write_result(result, directory)
        write_report(result, directory / "report.html")
    except ConfigError as error:
        return error
    return None


def strict_status(result: RunResult) -> int:
    """The exit status of --strict: whether the audit failed a cell."""
    return FAILED if "failed" in verdicts(result).values() else 0


def _levels(agenda: Agenda) -> set[int]:
    """Numbers of streams at which the client's error matters; of an open loop nobody knows yet."""
    return {level_of(load.concurrency or OPEN_LOOP_STREAMS) for load in agenda.loads()}


def print_json(data: object) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    sys.stdout.flush()


def summary_of(result: RunResult, directory: Path | None) -> dict[str, object]:
    """Cells, findings and where the files are; the single requests are in results.json."""
    return {"schema": result.schema, "kind": result.kind, "status": result.status, "stop_reason": result.stop_reason,
            "duration_s": result.duration_s, "target": result.target, "workload": result.workload,
            "workload_hash": workload_hash(result), "cells": result.cells,
            "skipped_cells": result.skipped_cells, "search": result.search, "findings": result.findings,
            "verdicts": verdicts(result),
            "files": {} if directory is None else {name: str(directory / name) for name in FILES}}
