"""Baselines: results kept under a name, to hold later ones against."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pelton.bench.compare.command import compare_and_tell, status_of
from pelton.bench.compare.comparison import Named
from pelton.bench.compare.options import BaselineCheckOptions, BaselineOptions, BaselineSaveOptions
from pelton.bench.files import prepare_output_dir, read_result, to_json, write_atomic
from pelton.bench.results import RunResult
from pelton.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def run_save(options: BaselineSaveOptions) -> int:
    """Stores a result as a baseline. Returns the exit status.

    Raises:
        ConfigError: the result cannot be read, the name is taken or wrong, or the directory cannot be written.
    """
    path = baseline_path(options)
    if path.exists() and not options.replace:
        raise ConfigError(f"baseline {options.name!r} exists already ({path}); give replace to put this in its place")
    _store(_read(options.results), path)
    print(path)
    return 0


def run_check(options: BaselineCheckOptions) -> int:
    """Holds a result against its baseline. Returns the exit status.

    Raises:
        ConfigError: there is no such baseline, a result or a rule cannot be read, or the workloads differ.
    """
    path, result = baseline_path(options), _read(options.results)
    if not path.exists():
        if not options.save:
            raise ConfigError(f"there is no baseline {options.name!r} ({path}); store one with pelton bench baseline "
                              "save, or give save")
        _store(result, path)
        print(f"stored as the first baseline of this name: {path}")
        return 0
    named = [Named(options.name, str(path), read_result(path)), Named("now", options.results, result)]
    status = status_of(compare_and_tell(named, options))
    if options.save and status == 0:
        _store(result, path)
    return status


def baseline_path(options: BaselineOptions) -> Path:
    """The file of a baseline.

    Raises:
        ConfigError: the name has other characters than those allowed.
    """
    if not _NAME.fullmatch(options.name):
        raise ConfigError(f"name must be letters, digits, dots, dashes and underscores, got {options.name!r}")
    return _directory(options) / f"{options.name}.json"


def _directory(options: BaselineOptions) -> Path:
    if options.baseline_dir is not None:
        return Path(options.baseline_dir).expanduser()
    return Path(os.environ.get("PELTON_CACHE") or "~/.cache/pelton").expanduser() / "baselines"


def _read(place: str) -> RunResult:
    path = Path(place).expanduser()
    return read_result(path / "results.json" if path.is_dir() else path)


def _store(result: RunResult, path: Path) -> None:
    if result.status != "complete":
        raise ConfigError(f"a partial result makes no baseline ({result.stop_reason or 'cells are missing'})")
    prepare_output_dir(str(path.parent))
    write_atomic(path, to_json(result))
