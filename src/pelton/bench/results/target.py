"""The server under measurement, and where the client ran."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pelton.bench.results.record import Record


class TargetInfo(Record, kw_only=True):
    """The server under measurement and what was found out about it before the run."""

    url: str
    model: str
    protocol: str = "openai"
    """openai, triton, kserve or ollama."""
    endpoint: str
    """chat or completions; generate or infer for Triton's models."""
    extra_inputs: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields added to every request."""
    sends_token_ids: bool
    tokenizer: str
    """Directory the client's tokenizer was read from."""
    tokenizer_sha256: str
    template_tokens: int
    """Tokens the chat template (or a leading BOS) adds to every prompt, as the server counts."""
    frame_correction_tokens: int
    """Server's count minus the client's, constant over prompt sizes; prompts were sized by it."""
    output_control: Literal["ignore_eos+min_tokens", "ignore_eos", "min_tokens", "max_tokens"]
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
