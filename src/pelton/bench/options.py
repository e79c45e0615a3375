"""Options of `pelton bench serve`, `sweep` and `report`, as frozen dataclasses; those of the load are beside it.

The command line makes its options from these classes; a default stands here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pelton.bench.analysis import AnalysisOptions, WatchOptions
from pelton.bench.idle_options import refuse_idle
from pelton.bench.load.options import DEFAULT_NUM_REQUESTS, LoadOptions, require, require_list
from pelton.bench.prompts.lengths import Lengths
from pelton.bench.prompts.options import PromptOptions
from pelton.bench.protocols.fields import check_added, read_fields
from pelton.bench.results import LoadSpec

SEARCH_SECONDS = 10.0
FORMATS = ("html", "markdown", "svg", "png", "json", "csv")
Endpoint = Literal["chat", "completions"]
ProtocolName = Literal["auto", "openai", "triton", "kserve", "ollama"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Which server is measured, and what every request to it looks like."""

    url: str
    """Address of an OpenAI-compatible server, for example http://127.0.0.1:8000; `/v1` is added when missing."""
    model: str | None = field(default=None, metadata={"aliases": ("-m",)})
    """Name of the served model; none: the only one that /v1/models lists."""
    endpoint: Endpoint = field(default="chat", metadata={"aliases": ("--endpoint-type",)})
    """Route to measure: chat completions (prompt sizes include the chat template) or completions."""
    protocol: ProtocolName = field(default="auto", metadata={"aliases": ("--service-kind",)})
    """openai: vLLM, SGLang, trtllm-serve, llama.cpp, Ollama, Pelton; triton: Triton's generate extension; kserve:
    KServe v2's infer over HTTP (whole answers only); ollama: Ollama's own API; auto: openai, or triton where the server
    has no such routes."""
    extra_inputs: str | None = None
    """Further fields of every request: NAME:VALUE joined by commas, or a JSON object; none that the benchmark decides,
    such as temperature."""
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
    def extra_fields(self) -> dict[str, Any]:
        """extra_inputs, read."""
        return read_fields("extra_inputs", self.extra_inputs)

    @property
    def can_stream(self) -> bool:
        """Whether the protocol has streams."""
        return self.protocol != "kserve"

    @property
    def prints_json(self) -> bool:
        return self.json or self.output_format == "json"

    def __post_init__(self) -> None:
        require(bool(self.url.strip()), "url", self.url, "the address of a server, such as http://127.0.0.1:8000")
        require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature,
                 "0 or more")
        require(math.isfinite(self.request_timeout) and self.request_timeout > 0, "request_timeout",
                 self.request_timeout, "above 0 seconds")
        check_added("extra_inputs", self.extra_fields)
        require(not self.token_ids or self.endpoint == "completions", "token_ids", self.token_ids,
                 "off unless endpoint is completions (chat takes no token ids)")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(LoadOptions, PromptOptions, AnalysisOptions, WatchOptions, TargetOptions):
    """`pelton bench serve`: one prompt size, without and with streaming, at each concurrency."""

    concurrency: tuple[int, ...] = (1, 4)
    """Requests kept in flight, one table row each."""
    prompt_tokens: Lengths = field(default=Lengths.parse(128), metadata={"aliases": ("--synthetic-input-tokens-mean",)})
    """Tokens of each prompt as the server counts them, chat template included: a number, LOW-HIGH (uniform),
    MEAN~STDDEV (normal) or data (as the data set has them)."""
    output_tokens: Lengths = field(default=Lengths.parse(64), metadata={"aliases": ("--output-tokens-mean",)})
    """Tokens each request asks for, written likewise."""
    output_dir: str | None = None
    """Directory for results.json, requests.csv, cells.csv and report.html; none: only print."""

    def __post_init__(self) -> None:
        TargetOptions.__post_init__(self)
        AnalysisOptions.__post_init__(self)
        LoadOptions.__post_init__(self)
        self.check_endpoint(self.endpoint)
        require_list("concurrency", self.concurrency, least=1)
        PromptOptions.__post_init__(self)
        require(self.trace is None, "trace", self.trace, "given to sweep")
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(LoadOptions, PromptOptions, AnalysisOptions, WatchOptions, TargetOptions):
    """`pelton bench sweep`: every concurrency with every prompt size, streaming."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    """Requests kept in flight."""
    prompt_tokens: tuple[Lengths, ...] = field(default=tuple(map(Lengths.parse, (16, 64, 256, 900))),
                                               metadata={"aliases": ("--synthetic-input-tokens-mean",)})
    """Tokens of each prompt as the server counts them, chat template included: a number, LOW-HIGH (uniform),
    MEAN~STDDEV (normal) or data (as the data set has them)."""
    output_tokens: tuple[Lengths, ...] = field(default=(Lengths.parse(64),),
                                               metadata={"aliases": ("--output-tokens-mean",)})
    """Tokens each request asks for, written likewise."""
    output_dir: str = field(default="bench-results", metadata={"aliases": ("--artifact-dir",)})
    """Directory for results.json, requests.csv, cells.csv and report.html."""
    resume: bool = False
    """Go on with the run whose results are in output_dir: keep its whole cells, measure the others."""
    duration_budget: float | None = None
    """Seconds for the whole sweep, shared out over its cells by size; a cell that spends its share starts no more
    requests and is marked cut short."""

    def __post_init__(self) -> None:
        TargetOptions.__post_init__(self)
        AnalysisOptions.__post_init__(self)
        LoadOptions.__post_init__(self)
        self.check_endpoint(self.endpoint)
        require_list("concurrency", self.concurrency, least=1)
        PromptOptions.__post_init__(self)
        require(bool(self.output_dir), "output_dir", self.output_dir, "a directory")
        budget = self.duration_budget
        require(budget is None or (math.isfinite(budget) and budget > 0), "duration_budget", budget,
                 "above 0 seconds")
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SweepOptions):
    """`pelton bench search`: the load is searched for; one prompt size and one output size."""

    prompt_tokens: tuple[Lengths, ...] = field(default=(Lengths.parse(256),),
                                               metadata={"aliases": ("--synthetic-input-tokens-mean",)})
    """Tokens of each prompt as the server counts them, chat template included: a number, LOW-HIGH (uniform),
    MEAN~STDDEV (normal) or data (as the data set has them)."""
    search_for: Literal["concurrency", "request_rate"] = "concurrency"
    """What to vary. With goodput: the highest level at which enough requests are within the targets. Without: the
    knee, the lowest concurrency that comes near the highest throughput, or the highest rate that is served."""
    search_start: float = 1.0
    """First level."""
    search_most: float = 1024.0
    """Highest level."""
    search_precision: float = 0.1
    """The search ends when the lowest level that failed is so little above the highest that passed, relatively."""
    attainment: float = 99.0
    """Percent of the requests that must be within the targets of goodput."""
    knee_gain: float = 10.0
    """Percent more output tokens a second that twice the concurrency must bring for the search to go up, and within
    which of the highest throughput the knee lies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_tokens", "output_tokens"):
            sizes = getattr(self, name)
            require(len(sizes) == 1, name, ",".join(map(str, sizes)), "one size, as a search varies only the load")
        given = [name for name in ("request_rate", "stages", "trace") if getattr(self, name)]
        require(not given, "load", ", ".join(given), "left to the search; give search_for")
        for name in ("search_start", "search_most", "search_precision"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, value, "above 0")
        require(self.search_start <= self.search_most, "search_start", self.search_start, "at most search_most")
        if self.search_for == "concurrency":
            for name in ("search_start", "search_most"):
                require(getattr(self, name).is_integer(), name, getattr(self, name), "a whole number of requests")
        require(0 < self.attainment <= 100, "attainment", self.attainment, "above 0 and at most 100")
        require(math.isfinite(self.knee_gain) and self.knee_gain >= 0, "knee_gain", self.knee_gain,
                "0 percent or more")

    @property
    def wants_knee(self) -> bool:
        return self.goodput is None and self.search_for == "concurrency"

    @property
    def criterion(self) -> str:
        """What a level must keep, in words."""
        if self.goodput is not None:
            return f"at least {self.attainment:g} % of the requests within {self.goodput}"
        if self.search_for == "request_rate":
            return "the requests that arrive are served"
        return f"lowest concurrency within {self.knee_gain:g} % of the highest output throughput"

    def load_at(self, level: float) -> LoadSpec:
        """The load of one level. By default enough requests to fill a closed loop four times, or ten seconds."""
        is_unsized = self.num_requests is None and self.measurement_duration is None
        if self.search_for == "request_rate":
            duration = SEARCH_SECONDS if is_unsized else self.measurement_duration
            options = LoadOptions(**{f.name: getattr(self, f.name) for f in fields(LoadOptions)})
            return replace(options, request_rate=(level,), measurement_duration=duration).loads(())[0]
        count = max(DEFAULT_NUM_REQUESTS, 4 * int(level)) if is_unsized else self.num_requests
        return replace(self, num_requests=count).loads((int(level),))[0]


@dataclass(frozen=True, kw_only=True)
class ReportOptions(AnalysisOptions):
    """`pelton bench report`: the report of a stored result, made again."""

    results: str
    """A results.json, or the directory that holds one."""
    output: str | None = None
    """The HTML file to write; none: report.html beside the results. Other formats are written beside it."""
    format: tuple[str, ...] = ("html",)
    """What to write: html, markdown, svg and png (every plot), json (the figures computed again), csv."""
    json: bool = False
    """Print one JSON object with the paths of what was written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.format) and set(self.format) <= set(FORMATS), "format", ",".join(self.format),
                f"some of {', '.join(FORMATS)}")
