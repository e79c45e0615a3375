"""Made-up benchmark results, and counters of prompts for the calibration server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.audit import audit
from pelton.bench.cell import CellSpec, closed
from pelton.bench.metrics.registry import all_metrics
from pelton.bench.results import SCHEMA, Environment, RequestRecord, RunResult, TargetInfo, Workload
from pelton.bench.summary import summarize
from pelton.tokenizer.tokenizer import Tokenizer

TARGET = TargetInfo(url="http://127.0.0.1:1", model="made-up", endpoint="chat", sends_token_ids=False,
                    tokenizer="/nowhere", tokenizer_sha256="0" * 64, template_tokens=4, frame_correction_tokens=0,
                    output_control="ignore_eos+min_tokens", reports_usage=True, reports_stream_usage=True)
WORKLOAD = Workload(loads=[closed(1, 1)], prompt_tokens=["16"], output_tokens=["4"], num_warmup=0,
                    temperature=0.0, fixed_output=True, seed=1, request_timeout_s=1.0, duration_budget_s=None,
                    prompts="made up", first_tokens_unique=True)
ENVIRONMENT = Environment(pelton_version="0", python_version="3", platform="none", num_cpus=1,
                          started_at="2026-01-31T10:20:30+00:00", command="pelton bench sweep")

UNWATCHED = {"watch_gpus": False, "watch_server": False}  # a process less to start and to wait for


def request(**changes: Any) -> RequestRecord:
    """A good streamed request: sent at 0, first token after 10 ms, three more 2 ms apart, ended at 17 ms."""
    fields: dict[str, Any] = {
        "cell": "c1-p16-o4", "index": 0, "is_warmup": False, "is_stream": True, "requested_prompt_tokens": 16,
        "client_prompt_tokens": 16, "server_prompt_tokens": 16, "requested_output_tokens": 4, "output_tokens": 4,
        "output_tokens_source": "server", "cached_tokens": None, "connect_us": 0, "was_resent": False,
        "scheduled_us": 0, "sent_us": 0, "first_byte_us": 9000, "first_chunk_us": 9000, "num_chunks": 6,
        "first_content_us": 10000, "last_content_us": 16000, "end_us": 17000,
        "content_us": [10000, 12000, 14000, 16000], "finish_reason": "length", "http_status": 200, "error": None,
        "error_message": None}
    return RequestRecord(**{**fields, **changes})


def later(record: RequestRecord, us: int, **changes: Any) -> RequestRecord:
    """The same request so many microseconds later."""
    moved = {name: getattr(record, name) + us for name in ("scheduled_us", "sent_us", "first_byte_us",
                                                           "first_chunk_us", "first_content_us", "last_content_us",
                                                           "end_us")}
    return msgspec.structs.replace(record, **moved, **changes)


def result(cells: Sequence[tuple[CellSpec, list[RequestRecord]]], *, target: dict[str, Any] | None = None,
           workload: dict[str, Any] | None = None, **changes: Any) -> RunResult:
    """An audited result of these cells; requests are filed under their cell's id."""
    filed = [(spec, [msgspec.structs.replace(r, cell=spec.id, requested_prompt_tokens=spec.prompt_tokens,
                                             requested_output_tokens=spec.output_tokens) for r in records])
             for spec, records in cells]
    fields: dict[str, Any] = {
        "schema": SCHEMA, "kind": "sweep", "status": "complete", "stop_reason": None, "environment": ENVIRONMENT,
        "target": msgspec.structs.replace(TARGET, **(target or {})),
        "workload": msgspec.structs.replace(WORKLOAD, **(workload or {})), "duration_s": 1.0,
        "cells": [summarize(spec.empty(), [r for r in records if not r.is_warmup]) for spec, records in filed],
        "skipped_cells": [], "findings": [], "metrics": [m.describe() for m in all_metrics()],
        "requests": [r for _, records in filed for r in records]}
    made = RunResult(**{**fields, **changes})
    return msgspec.structs.replace(made, findings=audit(made))


def spec(*, concurrency: int = 1, num_requests: int = 1, **changes: Any) -> CellSpec:
    """One request of 16 tokens in and 4 out at a time."""
    return CellSpec(**{"load": closed(concurrency, num_requests), "prompt_tokens": 16, "output_tokens": 4,
                       "num_warmup": 0, "is_stream": True, **changes})


def prompt_counter(folder: Path, *, extra: int = 0) -> Callable[[dict[str, Any]], int]:
    """Counts a request's prompt as a server with this tokenizer would, plus `extra` tokens."""
    tokenizer = Tokenizer.from_dir(folder)

    def count(body: dict[str, Any]) -> int:
        prompt = body.get("prompt")
        if prompt is None:
            return len(tokenizer.encode_chat(body["messages"])) + extra
        return (len(prompt) if isinstance(prompt, list) else len(tokenizer.encode(prompt))) + extra

    return count
