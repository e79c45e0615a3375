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
from pelton.errors import ConfigError, PeltonError

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
    files = None if directory is None else _Files(directory)
    check_reachable(Address.parse(options.url))
    errors = client_errors(_levels(agenda)) if options.calibrate else []
    if errors and not options.prints_json:
        make_console().print(error_table(errors))
    earlier = earlier_run(directory, kind) if getattr(options, "resume", False) else None
    result = execute(Run(kind, options, agenda, progress=Progress(is_silent=options.prints_json),
                         keep=None if files is None else files.keep, client_errors=errors, earlier=earlier))
    unwritten = None if files is None else files.finish(result)
    try:
        _show(result, options, directory, is_written=unwritten is None)
    except BrokenPipeError:
        raise
    except OSError as error:  # the disk that standard output goes to is full
        if unwritten is None:
            unwritten = _unshown(error, options.output_dir)
    if unwritten is not None:
        raise unwritten
    raise_if_failed(result, options.output_dir)
    if result.stop_reason == "interrupted":
        return INTERRUPTED
    return strict_status(result) if options.strict else 0


class _Files:
    """The files of a run, as far as they could be written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: str | None = None

    def keep(self, result: RunResult) -> None:
        """Writes what there is so far.

        Raises:
            ConfigError: a file cannot be written.
        """
        write_result(result, self._directory)
        self._kept = "what was measured before"

    def finish(self, result: RunResult) -> ConfigError | None:
        """Writes all files; what keeps it from writing one is to be raised when the result has been printed."""
        try:
            self.keep(result)
            self._kept = "all that was measured"
            write_report(result, self._directory / "report.html")
        except ConfigError as error:
            return error if self._kept is None else ConfigError(
                f"{error}; {self._kept} is kept in {self._directory / 'results.json'}")
        return None


def _show(result: RunResult, options: ServeOptions | SweepOptions, directory: Path | None, *, is_written: bool) -> None:
    """Prints the result, and where its files are.

    Raises:
        OSError: standard output cannot be written.
    """
    if options.prints_json:
        print_json(summary_of(result, directory))
        return
    print_result(make_console(), result)
    if result.search is not None:
        make_console().print(search_table(result))
    if directory is not None and is_written:
        print(f"\nreport   {directory / 'report.html'}\nresults  {directory / 'results.json'}")
    sys.stdout.flush()


def _unshown(error: OSError, kept_in: str | None) -> PeltonError:
    place = f"; all that was measured is kept in {kept_in}" if kept_in else "; give output_dir to keep what is measured"
    return PeltonError(f"standard output cannot be written: {error.strerror or error}{place}")


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
