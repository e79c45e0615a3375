"""The records a benchmark writes: their schema, and files that are always whole.

Times of a request are whole microseconds since the run began, on one monotonic clock. Every metric can be computed
again from the requests alone. Readers refuse another schema version.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from pelton.errors import ConfigError

SCHEMA = "pelton.bench/1"
OFFLINE_SCHEMA = "pelton.bench.offline/1"

TokenCountSource = Literal["server", "client"]
Status = Literal["complete", "partial"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, no unknown keys."""


class RequestRecord(Record):
    """One request as the client saw it."""

    cell: str
    index: int
    """Position in the order of sending within the cell; warm-up requests count for themselves."""
    is_warmup: bool
    is_stream: bool
    requested_prompt_tokens: int
    client_prompt_tokens: int
    """Counted with the client's tokenizer, template included."""
    server_prompt_tokens: int | None
    """The server's usage.prompt_tokens; none when it sent no usage."""
    requested_output_tokens: int
    output_tokens: int
    """The server's usage.completion_tokens, else the client's own count of the received text."""
    output_tokens_source: TokenCountSource
    cached_tokens: int | None
    """Prompt tokens the server says it took from a cache; none when it does not say."""
    connect_us: int
    """Time to open the connection; 0 on a connection that was open already."""
    was_resent: bool
    """Sent a second time because a connection closed without an answer; times are the second sending's."""
    sent_us: int
    """Just before the request was handed to the socket, the connection being open."""
    first_byte_us: int | None
    first_content_us: int | None
    """Arrival of the first chunk with text in it (streaming only)."""
    last_content_us: int | None
    end_us: int
    """Arrival of the last byte, or the moment of failure."""
    content_us: list[int]
    """Arrival of every chunk with text, in microseconds since sending (streaming only)."""
    finish_reason: str | None
    http_status: int | None
    error: str | None
    """Kind of failure in one word; none for a good request."""
    error_message: str | None

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def prompt_tokens(self) -> int:
        """The true prompt size: the server's count where it gave one."""
        return self.client_prompt_tokens if self.server_prompt_tokens is None else self.server_prompt_tokens

    @property
    def latency_us(self) -> int:
        return self.end_us - self.sent_us


class Distribution(Record):
    """Summary of samples; percentiles interpolate linearly between the two nearest ranks."""

    num_samples: int
    mean: float
    min: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float


class MetricResult(Record):
    """A metric of one cell: a distribution, a single value, or the reason why there is none."""

    distribution: Distribution | None = None
    value: float | None = None
    withheld: str | None = None


class MetricDefinition(Record):
    """What a metric means, carried in every result so that its numbers explain themselves."""

    name: str
    title: str
    unit: str
    formula: str
    definition: str
    is_distribution: bool


class CellResult(Record):
    """One measured combination of load and request shape."""

    id: str
    concurrency: int
    requested_prompt_tokens: int
    requested_output_tokens: int
    is_stream: bool
    num_requests: int
    """Asked for."""
    num_done: int
    """Measured requests that ended, well or badly."""
    start_us: int
    """First measured request sent, since the run began."""
    end_us: int
    """Last measured request ended."""
    peak_in_flight: int
    metrics: dict[str, MetricResult]
    errors: dict[str, int]
    """Failed measured requests by kind."""
    status: Status = "complete"
    stop_reason: str | None = None
    """Why the cell has fewer requests than asked for."""

    def distribution(self, metric: str) -> Distribution | None:
        found = self.metrics.get(metric)
        return None if found is None else found.distribution

    def value(self, metric: str) -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found.value


class Finding(Record):
    """One thing the audit noticed: its name, the evidence and what to do."""

    name: str
    severity: Literal["failure", "warning", "note"]
    """failure: the cell's figures do not mean what they seem to; warning: read them with care; note: for the record."""
    cells: list[str]
    """Ids of the cells concerned; empty for the whole run."""
    evidence: str
    advice: str


class TargetInfo(Record):
    """The server under measurement and what was found out about it before the run."""

    url: str
    model: str
    endpoint: str
    sends_token_ids: bool
    tokenizer: str
    """Directory the client's tokenizer was read from."""
    tokenizer_sha256: str
    template_tokens: int
    """Tokens the chat template (or a leading BOS) adds to every prompt, as the server counts."""
    frame_correction_tokens: int
    """Server's count minus the client's, constant over prompt sizes; prompts were sized by it."""
    output_control: Literal["ignore_eos+min_tokens", "ignore_eos", "max_tokens"]
    """Fields by which the output length was asked for."""
    reports_usage: bool
    reports_stream_usage: bool
    server_header: str | None = None
    version: str | None = None


class Environment(Record):
    """Where and when the client ran."""

    pelton_version: str
    python_version: str
    platform: str
    num_cpus: int
    started_at: str
    """ISO 8601, UTC."""
    command: str


class Workload(Record):
    """What was asked for."""

    concurrency: list[int]
    prompt_tokens: list[int]
    output_tokens: int
    num_requests: int
    num_warmup: int | None
    temperature: float
    fixed_output: bool
    seed: int
    request_timeout_s: float
    duration_budget_s: float | None
    prompts: str
    """How the prompts were made."""
    first_tokens_unique: bool
    """Whether no two prompts of the run share their first content token."""


class RunResult(Record):
    """Everything one `pelton bench serve` or `sweep` measured."""

    schema: str
    kind: Literal["serve", "sweep"]
    status: Status
    stop_reason: str | None
    environment: Environment
    target: TargetInfo
    workload: Workload
    duration_s: float
    cells: list[CellResult]
    skipped_cells: list[str]
    findings: list[Finding]
    metrics: list[MetricDefinition]
    requests: list[RequestRecord]


class OfflineRecord(Record):
    """Offline generation at one batch size: equal requests, all queued at once, the engine in process."""

    batch_size: int
    input_len: int
    """Prompt tokens of each request."""
    output_len: int
    """Tokens each request was to generate."""
    num_runs: int
    wall_s: list[float]
    """Wall time of each measured run, from the first request queued to the last token."""
    num_output_tokens: list[int]
    """Generated tokens of each run, counted as they came back."""
    output_tokens_per_s: list[float]
    """Generated tokens over wall time, one per run."""
    total_tokens_per_s: list[float]
    """Prompt and generated tokens over wall time, one per run."""
    median_wall_s: float
    median_output_tokens_per_s: float
    median_total_tokens_per_s: float
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache, over all measured runs."""
    step_host_ms: float | None = None
    """Median Python time of one engine step."""

    @classmethod
    def from_runs(cls, *, batch_size: int, input_len: int, output_len: int, wall_s: Sequence[float],
                  num_output_tokens: Sequence[int], num_cached_tokens: int = 0,
                  step_host_ms: float | None = None) -> OfflineRecord:
        """Derives the rates from the wall time in seconds and the generated tokens of each run.

        Raises:
            ConfigError: no runs, a time that is not positive, or unequal numbers of times and counts.
        """
        if not wall_s or min(wall_s) <= 0 or len(wall_s) != len(num_output_tokens):
            raise ConfigError(f"wall_s must hold one positive time per run, got {list(wall_s)!r} for "
                              f"{len(num_output_tokens)} runs")
        output = [n / s for n, s in zip(num_output_tokens, wall_s)]
        total = [(batch_size * input_len + n) / s for n, s in zip(num_output_tokens, wall_s)]
        return cls(batch_size=batch_size, input_len=input_len, output_len=output_len, num_runs=len(wall_s),
                   wall_s=list(wall_s), num_output_tokens=list(num_output_tokens), output_tokens_per_s=output,
                   total_tokens_per_s=total, median_wall_s=statistics.median(wall_s),
                   median_output_tokens_per_s=statistics.median(output),
                   median_total_tokens_per_s=statistics.median(total), num_cached_tokens=num_cached_tokens,
                   step_host_ms=step_host_ms)


class OfflineResult(Record):
    """Everything one `pelton bench throughput` measured."""

    schema: str
    model: str
    environment: Environment
    records: list[OfflineRecord]
    findings: list[Finding]


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
        probe.write_bytes(b"")
        probe.unlink()
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


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


REQUEST_COLUMNS = ("cell", "index", "is_warmup", "is_stream", "requested_prompt_tokens", "client_prompt_tokens",
                   "server_prompt_tokens", "requested_output_tokens", "output_tokens", "output_tokens_source",
                   "cached_tokens", "connect_us", "was_resent", "sent_us", "first_byte_us", "first_content_us",
                   "last_content_us", "end_us", "finish_reason", "http_status", "error", "error_message")
CELL_COLUMNS = ("id", "concurrency", "requested_prompt_tokens", "requested_output_tokens", "is_stream",
                "num_requests", "num_done", "peak_in_flight", "status", "stop_reason")
STATISTICS = ("num_samples", "mean", "min", "max", "p50", "p90", "p95", "p99")


def requests_csv(result: RunResult) -> bytes:
    """One line per request; times in microseconds since the run began."""
    rows = [[getattr(r, name) for name in REQUEST_COLUMNS] + [len(r.content_us)] for r in result.requests]
    return _csv([*REQUEST_COLUMNS, "num_content_chunks"], rows)


def cells_csv(result: RunResult) -> bytes:
    """One line per cell; a distribution takes one column per statistic, named metric.statistic [unit]."""
    header, rows = list(CELL_COLUMNS), [[getattr(c, name) for name in CELL_COLUMNS] for c in result.cells]
    for metric in result.metrics:
        if metric.is_distribution:
            header += [f"{metric.name}.{s}" + ("" if s == "num_samples" else f" [{metric.unit}]") for s in STATISTICS]
        else:
            header.append(f"{metric.name} [{metric.unit}]")
        for cell, row in zip(result.cells, rows, strict=True):
            if metric.is_distribution:
                found = cell.distribution(metric.name)
                row += [None if found is None else getattr(found, s) for s in STATISTICS]
            else:
                row.append(cell.value(metric.name))
    return _csv(header, rows)


def write_result(result: RunResult, directory: Path) -> None:
    """Writes results.json, requests.csv and cells.csv into the directory."""
    write_atomic(directory / "results.json", to_json(result))
    write_atomic(directory / "requests.csv", requests_csv(result))
    write_atomic(directory / "cells.csv", cells_csv(result))
