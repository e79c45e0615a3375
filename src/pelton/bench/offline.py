"""What an offline driver measured, as the records of any other benchmark. It runs no engine itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from pelton.bench.audit import audit
from pelton.bench.cell import closed
from pelton.bench.command import print_json, strict_status, summary_of
from pelton.bench.environment import describe_environment
from pelton.bench.files import prepare_output_dir, write_result
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.report.page import write_report
from pelton.bench.results import SCHEMA, CellResult, RequestRecord, RunResult, Series, TargetInfo, Workload
from pelton.bench.summary import empty_cell, recompute
from pelton.bench.table import make_console, print_result

IN_PROCESS = "in process"


class OfflineRequest(Protocol):
    """One request, as the engine's driver hands it over; stamps of one monotonic clock."""

    sent_ns: int
    token_ns: list[int]
    num_tokens: int
    num_cached_tokens: int
    finish_reason: str | None


class OfflineRun(Protocol):
    """One run of equal requests, all queued at once."""

    batch_size: int
    input_len: int
    output_len: int
    is_warmup: bool
    trial: int
    requests: Sequence[OfflineRequest]
    end_ns: int
    step_host_ms: float
    vocab_size: int
    """No two prompts begin with the same token while the vocabulary lasts."""


def record_offline(kind: Literal["latency", "throughput"], runs: Sequence[OfflineRun], *, model: str, seed: int,
                   output_dir: str | None = None, as_json: bool = False, strict: bool = False) -> int:
    """Audits the runs, prints them and writes the files of a sweep. Returns the exit status.

    Raises:
        ConfigError: the directory cannot be written.
    """
    directory = None if output_dir is None else prepare_output_dir(output_dir)
    result = make_result(kind, runs, model=model, seed=seed)
    if directory is not None:
        write_result(result, directory)
        write_report(result, directory / "report.html")
    if as_json:
        print_json(summary_of(result, directory))
    else:
        print_result(make_console(), result)
        if directory is not None:
            print(f"\nreport   {Path(directory) / 'report.html'}")
    return strict_status(result) if strict else 0


def make_result(kind: Literal["latency", "throughput"], runs: Sequence[OfflineRun], *, model: str,
                seed: int) -> RunResult:
    """The runs as a result: a cell for each batch size, a trial for each measured run."""
    epoch_ns = min(request.sent_ns for run in runs for request in run.requests)
    cells: dict[str, CellResult] = {}
    requests: list[RequestRecord] = []
    for run in runs:
        load = closed(run.batch_size, run.batch_size)
        cell = f"{load.key}-p{run.input_len}-o{run.output_len}"
        if not run.is_warmup:
            cells[cell] = empty_cell(cell, load, prompt_tokens=run.input_len, output_tokens=run.output_len,
                                     is_stream=True, num_trials=run.trial + 1)
        requests += [_record(cell, run, index, request, epoch_ns) for index, request in enumerate(run.requests)]
    step_host = Series(source="engine", name="step_host", unit="ms", values=[run.step_host_ms for run in runs],
                       at_us=[(run.end_ns - epoch_ns) // 1000 for run in runs])
    result = recompute(RunResult(
        schema=SCHEMA, kind=kind, status="complete", stop_reason=None, target=_target(model),
        environment=describe_environment(shlex.join(["pelton", *sys.argv[1:]])), series=[step_host],
        workload=_workload(runs, list(cells.values()), len(requests), seed),
        duration_s=(max(run.end_ns for run in runs) - epoch_ns) / 1e9,
        cells=list(cells.values()), skipped_cells=[], findings=[], metrics=[m.describe() for m in all_metrics()],
        requests=requests))
    return msgspec.structs.replace(result, findings=audit(result))


def _record(cell: str, run: OfflineRun, index: int, request: OfflineRequest, epoch_ns: int) -> RequestRecord:
    def since_epoch(stamp_ns: int) -> int:
        return (stamp_ns - epoch_ns) // 1000

    first, last = (since_epoch(request.token_ns[at]) if request.token_ns else None for at in (0, -1))
    return RequestRecord(
        cell=cell, trial=run.trial, index=index, is_warmup=run.is_warmup, is_stream=True,
        requested_prompt_tokens=run.input_len, client_prompt_tokens=run.input_len, server_prompt_tokens=run.input_len,
        requested_output_tokens=run.output_len, output_tokens=request.num_tokens, output_tokens_source="server",
        cached_tokens=request.num_cached_tokens, connect_us=0, was_resent=False,
        scheduled_us=since_epoch(request.sent_ns), sent_us=since_epoch(request.sent_ns), first_byte_us=first,
        first_chunk_us=first, first_content_us=first, last_content_us=last,
        end_us=since_epoch(run.end_ns) if last is None else last,
        content_us=[(stamp - request.sent_ns) // 1000 for stamp in request.token_ns], num_chunks=len(request.token_ns),
        finish_reason=request.finish_reason, http_status=None, error=None, error_message=None)


def _target(model: str) -> TargetInfo:
    return TargetInfo(url=IN_PROCESS, model=model, endpoint="offline", sends_token_ids=True, tokenizer="none",
                      tokenizer_sha256="", template_tokens=0, frame_correction_tokens=0,
                      output_control="ignore_eos+min_tokens", reports_usage=True, reports_stream_usage=True)


def _workload(runs: Sequence[OfflineRun], cells: Sequence[CellResult], num_prompts: int, seed: int) -> Workload:
    return Workload(
        loads=[cell.load for cell in cells], prompt_tokens=sorted({str(run.input_len) for run in runs}),
        output_tokens=sorted({str(run.output_len) for run in runs}), num_warmup=None,
        num_trials=max(cell.num_trials for cell in cells), temperature=0.0, fixed_output=True, seed=seed,
        request_timeout_s=0.0, duration_budget_s=None, prompts="random token ids, all queued at once",
        first_tokens_unique=num_prompts <= runs[0].vocab_size)
