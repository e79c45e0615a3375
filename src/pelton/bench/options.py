"""Options of `pelton bench serve`, `sweep` and `report`, as frozen dataclasses; those of the load are beside it.

The command line makes its options from these classes; a default stands here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pelton.bench.load.options import LoadOptions, require, require_list

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Which server is measured, and what every request to it looks like."""

    url: str
    """Address of an OpenAI-compatible server, for example http://127.0.0.1:8000; `/v1` is added when missing."""
    model: str | None = field(default=None, metadata={"aliases": ("-m",)})
    """Name of the served model; none: the only one that /v1/models lists."""
    endpoint: Endpoint = field(default="chat", metadata={"aliases": ("--endpoint-type",)})
    """Route to measure: chat completions (prompt sizes include the chat template) or completions."""
    tokenizer: str | None = None
    """Directory with the served model's tokenizer.json, or pelton-tiny; none: asked of the server (Pelton only)."""
    token_ids: bool = False
    """Send prompts as token ids instead of text (completions only): exact whatever the tokenizer, no template."""
    fixed_output: bool = True
    """Ask for exactly output_tokens (ignore_eos, min_tokens) where the server takes these fields; the result says."""
    temperature: float = 0.0
    """Sampling temperature of the requests."""
    seed: int | None = field(default=None, metadata={"aliases": ("--random-seed",)})
    """Seed of the prompts; none: a fresh one per run, so that no run meets prompts a server has cached."""
    request_timeout: float = 300.0
    """Seconds after which a request without its full answer counts as failed."""
    api_key: str | None = None
    """Sent as `Authorization: Bearer KEY`; none: the environment variable OPENAI_API_KEY when set."""
    json: bool = False
    """Print one JSON object instead of tables, and no progress."""
    output_format: Literal["table", "json"] = "table"
    """json is the same as the option json."""

    @property
    def prints_json(self) -> bool:
        return self.json or self.output_format == "json"

    def __post_init__(self) -> None:
        require(bool(self.url.strip()), "url", self.url, "the address of a server, such as http://127.0.0.1:8000")
        require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature,
                 "0 or more")
        require(math.isfinite(self.request_timeout) and self.request_timeout > 0, "request_timeout",
                 self.request_timeout, "above 0 seconds")
        require(not self.token_ids or self.endpoint == "completions", "token_ids", self.token_ids,
                 "off unless endpoint is completions (chat takes no token ids)")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(LoadOptions, TargetOptions):
    """`pelton bench serve`: one prompt size, without and with streaming, at each concurrency."""

    concurrency: tuple[int, ...] = (1, 4)
    """Requests kept in flight, one table row each."""
    prompt_tokens: int = field(default=128, metadata={"aliases": ("--synthetic-input-tokens-mean",)})
    """Tokens of each prompt as the server counts them, chat template included."""
    output_tokens: int = field(default=64, metadata={"aliases": ("--output-tokens-mean",)})
    """Tokens each request asks for."""
    output_dir: str | None = None
    """Directory for results.json, requests.csv, cells.csv and report.html; none: only print."""

    def __post_init__(self) -> None:
        TargetOptions.__post_init__(self)
        LoadOptions.__post_init__(self)
        require_list("concurrency", self.concurrency, least=1)
        require(self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "at least 1")
        require(self.output_tokens >= 1, "output_tokens", self.output_tokens, "at least 1")
        require(self.trace is None, "trace", self.trace, "given to sweep")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(LoadOptions, TargetOptions):
    """`pelton bench sweep`: every concurrency with every prompt size, streaming."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    """Requests kept in flight."""
    prompt_tokens: tuple[int, ...] = field(default=(16, 64, 256, 900),
                                           metadata={"aliases": ("--synthetic-input-tokens-mean",)})
    """Tokens of each prompt as the server counts them, chat template included."""
    output_tokens: tuple[int, ...] = field(default=(64,), metadata={"aliases": ("--output-tokens-mean",)})
    """Tokens each request asks for."""
    output_dir: str = field(default="bench-results", metadata={"aliases": ("--artifact-dir",)})
    """Directory for results.json, requests.csv, cells.csv and report.html."""
    duration_budget: float | None = None
    """Seconds for the whole sweep, shared out over its cells by size; a cell that spends its share starts no more
    requests and is marked cut short."""

    def __post_init__(self) -> None:
        TargetOptions.__post_init__(self)
        LoadOptions.__post_init__(self)
        for name in ("concurrency", "prompt_tokens", "output_tokens"):
            require_list(name, getattr(self, name), least=1)
        require(bool(self.output_dir), "output_dir", self.output_dir, "a directory")
        budget = self.duration_budget
        require(budget is None or (math.isfinite(budget) and budget > 0), "duration_budget", budget,
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
