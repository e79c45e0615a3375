"""Files of results: always whole, and read only when they fit the schema."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.report.csv_tables import cells_csv, requests_csv, stages_csv
from pelton.bench.results import SCHEMA, Record, RunResult
from pelton.errors import ConfigError

PROBE_BYTES = 64 * 1024  # a small result: a disk without room for it is found before anything is measured


def to_json(record: Record) -> bytes:
    """Indented JSON; the requests of a run take one line each."""
    if not isinstance(record, RunResult):
        return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    frame = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(record, requests=[])), indent=1)
    end = b'"requests": []\n}'
    assert frame.endswith(end), "requests must stay the last field of RunResult"
    lines = b",\n  ".join(msgspec.json.encode(r) for r in record.requests)
    return frame.removesuffix(end) + b'"requests": [\n  ' + lines + b"\n ]\n}\n"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        ConfigError: the directory cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; free space or choose another "
                          "directory") from None


def prepare_output_dir(directory: str) -> Path:
    """Makes the directory and proves that it can be written, before anything is measured.

    Raises:
        ConfigError: it cannot.
    """
    path = Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".pelton-{secrets.token_hex(4)}.tmp"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir {directory!r} cannot be written: {error.strerror or error}; choose another "
                          "directory") from None
    return path


def read_result(path: Path) -> RunResult:
    """Reads a results.json.

    Raises:
        ConfigError: missing, not JSON, another schema version or damaged; the text says which.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"results {str(path)!r} cannot be read: {error.strerror or error}") from None
    try:
        schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"results {str(path)!r} is not a JSON object: {error}") from None
    if schema != SCHEMA:
        raise ConfigError(f"results {str(path)!r} has schema {schema!r}; this version reads {SCHEMA!r}")
    try:
        return msgspec.json.decode(data, type=RunResult)
    except msgspec.ValidationError as error:
        raise ConfigError(f"results {str(path)!r} does not fit schema {SCHEMA!r}: {error}") from None


def write_result(result: RunResult, directory: Path) -> None:
    """Writes results.json, requests.csv and cells.csv into the directory, and stages.csv where there are any."""
    write_atomic(directory / "results.json", to_json(result))
    write_atomic(directory / "requests.csv", requests_csv(result))
    write_atomic(directory / "cells.csv", cells_csv(result))
    if any(cell.stages for cell in result.cells):
        write_atomic(directory / "stages.csv", stages_csv(result))
