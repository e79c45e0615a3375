"""Options of `pelton bench serve`, `sweep` and `report`, as frozen dataclasses.

The command line makes its options from these classes; a default stands here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pelton.errors import ConfigError

Endpoint = Literal["chat", "completions"]


def _require(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {want}, got {value!r}")


def _require_counts(name: str, values: tuple[int, ...]) -> None:
    _require(len(values) >= 1, name, values, "at least one number")
    for value in values:
        _require(value >= 1, name, value, "at least 1")
    _require(len(set(values)) == len(values), name, values, "a list without repeats")


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Which server is measured, and what every request to it looks like."""

    url: str
    """Address of an OpenAI-compatible server, for example http://127.0.0.1:8000; `/v1` is added when missing."""
    model: str | None = None
    """Name of the served model; none: the only one that /v1/models lists."""
    endpoint: Endpoint = "chat"
    """Route to measure: chat completions (prompt sizes include the chat template) or completions."""
    tokenizer: str | None = None
    """Directory with the served model's tokenizer.json, or pelton-tiny; none: asked of the server (Pelton only)."""
    token_ids: bool = False
    """Send prompts as token ids instead of text (completions only): exact whatever the tokenizer, no template."""
    output_tokens: int = 64
    """Tokens each request asks for."""
    fixed_output: bool = True
    """Ask for exactly output_tokens (ignore_eos, min_tokens) where the server takes these fields; the result says."""
    temperature: float = 0.0
    """Sampling temperature of the requests."""
    num_requests: int = 32
    """Measured requests per cell."""
    num_warmup: int | None = None
    """Unmeasured requests before each cell, at the cell's concurrency; none: one per slot."""
    seed: int | None = None
    """Seed of the prompts; none: a fresh one per run, so that no run meets prompts a server has cached."""
    request_timeout: float = 300.0
    """Seconds after which a request without its full answer counts as failed."""
    api_key: str | None = None
    """Sent as `Authorization: Bearer KEY`; none: the environment variable OPENAI_API_KEY when set."""
    json: bool = False
    """Print one JSON object instead of tables, and no progress."""

    def __post_init__(self) -> None:
        _require(bool(self.url.strip()), "url", self.url, "the address of a server, such as http://127.0.0.1:8000")
        _require(self.output_tokens >= 1, "output_tokens", self.output_tokens, "at least 1")
        _require(self.num_requests >= 1, "num_requests", self.num_requests, "at least 1")
        _require(self.num_warmup is None or self.num_warmup >= 0, "num_warmup", self.num_warmup, "0 or more")
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature,
                 "0 or more")
        _require(math.isfinite(self.request_timeout) and self.request_timeout > 0, "request_timeout",
                 self.request_timeout, "above 0 seconds")
        _require(not self.token_ids or self.endpoint == "completions", "token_ids", self.token_ids,
                 "off unless endpoint is completions (chat takes no token ids)")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(TargetOptions):
    """`pelton bench serve`: one prompt size, without and with streaming, at each concurrency."""

    concurrency: tuple[int, ...] = (1, 4)
    """Requests kept in flight, one table row each."""
    prompt_tokens: int = 128
    """Tokens of each prompt as the server counts them, chat template included."""
    output_dir: str | None = None
    """Directory for results.json, requests.csv, cells.csv and report.html; none: only print."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts("concurrency", self.concurrency)
        _require(self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "at least 1")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(TargetOptions):
    """`pelton bench sweep`: every concurrency with every prompt size, streaming."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    """Requests kept in flight."""
    prompt_tokens: tuple[int, ...] = (16, 64, 256, 900)
    """Tokens of each prompt as the server counts them, chat template included."""
    output_dir: str = "bench-results"
    """Directory for results.json, requests.csv, cells.csv and report.html."""
    duration_budget: float | None = None
    """Seconds for the whole sweep, shared out over its cells by size; a cell that spends its share starts no more
    requests and is marked cut short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts("concurrency", self.concurrency)
        _require_counts("prompt_tokens", self.prompt_tokens)
        _require(bool(self.output_dir), "output_dir", self.output_dir, "a directory")
        budget = self.duration_budget
        _require(budget is None or (math.isfinite(budget) and budget > 0), "duration_budget", budget,
                 "above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """`pelton bench report`: the report of a stored result, made again."""

    results: str
    """A results.json, or the directory that holds one."""
    output: str | None = None
    """The HTML file to write; none: report.html beside the results."""
    json: bool = False
    """Print one JSON object with the path of the report."""
