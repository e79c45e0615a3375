"""The records a benchmark writes, and their schema.

Times of a request are whole microseconds since the run began, on one monotonic clock. Every metric can be computed
again from the requests alone. Readers (`pelton.bench.files`) refuse another schema version.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA = "pelton.bench/2"

TokenCountSource = Literal["server", "client"]
Status = Literal["complete", "partial"]
LoadKind = Literal["closed", "constant", "poisson", "gamma", "stages", "trace"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, no unknown keys. A record with optional fields says kw_only itself."""


class RequestRecord(Record, kw_only=True):
    """One request as the client saw it."""

    cell: str
    trial: int = 0
    """Which repeat of the cell, from 0."""
    index: int
    """Position in the load's plan within cell and trial; warm-up requests count for themselves."""
    worker: int = 0
    """The client process that sent it, from 0."""
    stage: str | None = None
    """The stage of a piecewise load in which it was due; none for other loads."""
    session: str | None = None
    """The conversation it belongs to; none for single requests."""
    turn: int | None = None
    """Its place in the conversation, from 0."""
    is_warmup: bool
    is_stream: bool
    requested_prompt_tokens: int
    client_prompt_tokens: int
    """Counted with the client's tokenizer, template included."""
    prefix_tokens: int = 0
    """Leading prompt tokens that were asked to be the same as in other requests; 0 for prompts that share nothing."""
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
    scheduled_us: int
    """When the load's plan wanted it sent: the drawn arrival time of an open loop, the trace's own time, the moment
    the slot was free (closed loop) or the think time was over (sessions). Latency from here holds what the client or
    a full server kept waiting."""
    sent_us: int
    """Just before the request was handed to the socket, the connection being open."""
    first_byte_us: int | None
    first_chunk_us: int | None = None
    """Arrival of the first event of the stream, with text or without."""
    first_reasoning_us: int | None = None
    """Arrival of the first chunk with reasoning text; none when the answer held none."""
    first_content_us: int | None
    """Arrival of the first chunk with text of the answer itself (streaming only); reasoning does not count."""
    last_content_us: int | None
    """Arrival of the last chunk with text of either kind."""
    end_us: int
    """Arrival of the last byte, or the moment of failure or cancellation."""
    content_us: list[int]
    """Arrival of every chunk with text, reasoning included, in microseconds since sending (streaming only)."""
    num_chunks: int = 0
    """Events of the stream, with text or without."""
    finish_reason: str | None
    http_status: int | None
    was_cancelled: bool = False
    """Given up by the client on purpose (cancellation_rate); not an error, and no full answer either."""
    error: str | None
    """Kind of failure in one word; none for a good or a cancelled request."""
    error_message: str | None

    @property
    def is_ok(self) -> bool:
        """Answered in full."""
        return self.error is None and not self.was_cancelled

    @property
    def first_text_us(self) -> int | None:
        """Arrival of the first generated text, reasoning included."""
        return self.sent_us + self.content_us[0] if self.content_us else None

    @property
    def prompt_tokens(self) -> int:
        """The true prompt size: the server's count where it gave one."""
        return self.client_prompt_tokens if self.server_prompt_tokens is None else self.server_prompt_tokens

    @property
    def latency_us(self) -> int:
        return self.end_us - self.sent_us


class Percentile(Record):
    """A percentile and its 95 % confidence interval."""

    value: float
    low: float | None
    """None: the samples do not reach far enough to say."""
    high: float | None


class Distribution(Record):
    """Summary of samples; the rules are those of `pelton.bench.percentiles`."""

    num_samples: int
    mean: float
    std: float | None
    """Standard deviation of the samples; none for a single one."""
    min: float
    max: float
    percentiles: dict[str, Percentile]
    """By name: p50, p90, p95, p99, p99.9; only those that have enough samples."""
    missing: dict[str, int]
    """Withheld percentile -> how many more samples it needs."""

    def value(self, name: str) -> float | None:
        """A percentile by name; none where it is withheld."""
        found = self.percentiles.get(name)
        return None if found is None else found.value

    @property
    def p50(self) -> float:
        """The median, which every sample has."""
        return self.percentiles["p50"].value

    @property
    def p90(self) -> float | None:
        return self.value("p90")

    @property
    def p95(self) -> float | None:
        return self.value("p95")

    @property
    def p99(self) -> float | None:
        return self.value("p99")


class MetricResult(Record, kw_only=True):
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


class LoadStage(Record):
    """A part of a piecewise load. The rate goes in a straight line from `rate` to `end_rate`."""

    name: str
    duration_s: float
    rate: float
    """Requests per second at its beginning."""
    end_rate: float
    """Requests per second at its end."""


class LoadSpec(Record, kw_only=True):
    """How the requests of a cell arrive."""

    kind: LoadKind
    """closed: so many in flight, the next sent when one ends. constant, poisson, gamma: arrivals at a rate whatever
    the server does. stages: Poisson arrivals whose rate changes. trace: the arrival times of a recorded log."""
    concurrency: int | None = None
    """Requests kept in flight (closed)."""
    rate: float | None = None
    """Requests per second (constant, poisson, gamma)."""
    ramp_up_s: float | None = None
    """Seconds over which the slots of a closed loop are filled, one after another; none: all at once."""
    burstiness: float | None = None
    """Shape of the gamma distribution of the gaps between arrivals: below 1 in bursts, 1 Poisson, above 1 evener."""
    stages: list[LoadStage] = []
    trace: str | None = None
    """File the arrivals were read from."""
    speed_up: float = 1.0
    """By how much a trace is replayed faster than it was recorded."""
    num_requests: int | None = None
    """Measured requests of each trial; none: as many as the duration holds."""
    duration_s: float | None = None
    """Seconds in which measured requests are sent; none: until all are."""
    cancellation_rate: float = 0.0
    """Share of the requests that the client gives up in the middle of the answer, on purpose."""
    max_in_flight: int | None = None
    """Most requests in flight of an open loop; what is due beyond them waits, and the wait is in the latency from
    the scheduled time."""

    @property
    def key(self) -> str:
        """A short name for ids: c8 for a closed loop, r2.5 for Poisson arrivals."""
        if self.kind == "closed":
            return f"c{self.concurrency}"
        if self.kind == "poisson":
            return f"r{self.rate:g}"
        if self.kind == "gamma":
            return f"r{self.rate:g}b{self.burstiness:g}"
        if self.kind == "constant":
            return f"k{self.rate:g}"
        return self.kind if self.speed_up == 1 else f"{self.kind}x{self.speed_up:g}"

    @property
    def label(self) -> str:
        """In words, for tables and plots."""
        if self.kind == "closed":
            return f"{self.concurrency} in flight"
        if self.kind == "poisson":
            return f"{self.rate:g}/s"
        if self.kind == "gamma":
            return f"{self.rate:g}/s, burstiness {self.burstiness:g}"
        if self.kind == "constant":
            return f"{self.rate:g}/s even"
        if self.kind == "trace":
            return "trace" if self.speed_up == 1 else f"trace × {self.speed_up:g}"
        return "stages"

    @property
    def order(self) -> tuple[str, float, float]:
        """To sort loads by: kind, then requests in flight or per second."""
        level = self.concurrency or self.rate or self.speed_up
        return self.kind, float(level), self.burstiness or 0.0


class ClientError(Record):
    """The client's own error at one number of streams, found with a server that stamps what it sends.

    Microseconds from the server's stamp to the client's, on one clock. The server's own work between its stamp and
    its write is included.
    """

    concurrency: int
    num_events: int
    ttft_p50_us: float
    ttft_p99_us: float
    event_p50_us: float
    """Of all events."""
    event_p99_us: float
    itl_p50_us: float
    """Of gaps between events: the client's gap minus the server's, its size without the sign."""
    itl_p99_us: float


class ClientLoad(Record, kw_only=True):
    """How hard the client itself worked; of several trials the worst."""

    num_workers: int
    """Client processes."""
    cpu_share: list[float]
    """CPU time over wall time, one per worker; 1 is a whole core."""
    loop_lag_p99_us: float | None = None
    """How late the event loop woke from its timers, P99 over all workers; none when it was not measured."""
    clock_jump_us: int = 0
    """By how much the wall clock moved against the monotonic one, at most."""
    calibration: ClientError | None = None
    """The client's error at the nearest number of streams, measured before the run; none when it was not."""


class Window(Record, kw_only=True):
    """The steady part of one trial: the load was full, and warm-up and run-out are outside."""

    trial: int
    start_us: int | None = None
    end_us: int | None = None
    withheld: str | None = None
    """Why there is none."""


class CellResult(Record, kw_only=True):
    """One measured combination of load and request shape."""

    id: str
    load: LoadSpec
    requested_prompt_tokens: int
    """Of prompts whose sizes vary the mean; each request's own is in its record."""
    requested_output_tokens: int
    """The mean too."""
    has_fixed_sizes: bool = True
    """Whether all requests of the cell ask for the same sizes."""
    is_stream: bool
    num_trials: int = 1
    """Repeats measured so far; their requests are pooled, and no time between them counts."""
    num_done: int
    """Measured requests that ended, well, badly or cancelled."""
    start_us: int
    """First measured request sent, since the run began."""
    end_us: int
    """Last measured request ended."""
    windows: list[Window] = []
    """The steady-state window of each trial."""
    peak_in_flight: int
    client: ClientLoad | None = None
    metrics: dict[str, MetricResult]
    errors: dict[str, int]
    """Failed measured requests by kind."""
    num_cancelled: int = 0
    """Measured requests that the client gave up on purpose."""
    num_held: int = 0
    """Requests of an open loop, warm-up included, that waited because max_in_flight were in flight."""
    status: Status = "complete"
    stop_reason: str | None = None
    """Why the cell has fewer requests than asked for."""

    @property
    def concurrency(self) -> int | None:
        """Requests asked to be in flight; none for loads that are not closed loops."""
        return self.load.concurrency if self.load.kind == "closed" else None

    @property
    def num_requests(self) -> int | None:
        """Measured requests asked for, over all trials; none where the load goes by time."""
        return None if self.load.num_requests is None else self.load.num_requests * self.num_trials

    def distribution(self, metric: str) -> Distribution | None:
        found = self.metrics.get(metric)
        return None if found is None else found.distribution

    def value(self, metric: str) -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found.value


class Series(Record, kw_only=True):
    """Something watched beside the load, on the clock of the requests."""

    source: Literal["gpu", "server", "engine"]
    """gpu: NVML of the machine the benchmark runs on; server: the server's own Prometheus metrics; engine: what an
    engine in this process tells of itself."""
    name: str
    """power, utilization, memory_used (gpu); the metric's own name (server); step_host, the median Python time of a
    step (engine)."""
    unit: str
    labels: dict[str, str] = {}
    at_us: list[int]
    """Since the run began."""
    values: list[float]


class HardwareFacts(Record, kw_only=True):
    """What serves and what is served, to hold figures against the hardware's limits."""

    gpu: str
    """As `pelton plan --gpu` takes it; cpu for the machine the benchmark runs on."""
    num_gpus: int = 1
    """That share one replica of the model (tensor parallelism)."""
    model: dict[str, Any]
    """`pelton.config.ModelConfig`, field by field."""
    weight_dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    source: Literal["options", "server"]
    """Who said so."""


class Analysis(Record, kw_only=True):
    """What is computed from the records besides what was measured; a stored result can be given another."""

    goodput: dict[str, float] = {}
    """Latency metric -> most milliseconds a request may take to count as good."""
    price_per_hour: float | None = None
    """Of the machine the server runs on, in any currency."""
    hardware: HardwareFacts | None = None
    """None: figures are not held against limits."""


NO_ANALYSIS = Analysis()


class Finding(Record):
    """One thing the audit noticed: its name, the evidence and what to do."""

    name: str
    severity: Literal["failure", "warning", "note"]
    """failure: the cell's figures do not mean what they seem to; warning: read them with care; note: for the record."""
    cells: list[str]
    """Ids of the cells concerned; empty for the whole run."""
    evidence: str
    advice: str


class TargetInfo(Record, kw_only=True):
    """The server under measurement and what was found out about it before the run."""

    url: str
    model: str
    protocol: str = "openai"
    """openai, triton, kserve or ollama."""
    endpoint: str
    """chat or completions; generate or infer for Triton's models."""
    extra_inputs: dict[str, Any] = {}
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


class PromptSpec(Record, kw_only=True):
    """What the prompts of a run are made of."""

    source: Literal["synthetic", "text", "data", "repeat"] = "synthetic"
    """synthetic: random words of the tokenizer's vocabulary; text: stretches of a file; data: a data set's prompts;
    repeat: the same text in every prompt."""
    file: str | None = None
    """Name of the file, without its directory."""
    sha256: str | None = None
    """Of the file."""
    is_unique: bool = True
    """Whether prompts were made unlike from their first token, but for what they were asked to share."""
    shared_prefix_tokens: int = 0
    """Tokens of content with which prompts of a cell begin alike."""
    num_prefixes: int = 1
    """Different beginnings among them."""


SYNTHETIC = PromptSpec()


class Workload(Record, kw_only=True):
    """What was asked for."""

    loads: list[LoadSpec]
    prompt_tokens: list[str]
    """As they were asked for: 128, 100-200 (uniform), 512~64 (normal) or data; a trace has its own."""
    output_tokens: list[str]
    """Likewise."""
    num_warmup: int | None
    """Unmeasured requests of each cell; none: as many as the load has in flight at first."""
    num_trials: int = 1
    temperature: float
    fixed_output: bool
    seed: int
    request_timeout_s: float
    duration_budget_s: float | None
    prompts: str
    """How the prompts were made, in words."""
    prompt_spec: PromptSpec = SYNTHETIC
    first_tokens_unique: bool
    """Whether no two prompts of the run share their first content token."""


class SearchStep(Record):
    """One level that a search tried."""

    level: float
    """Requests in flight, or per second."""
    cell: str
    passed: bool
    """Whether it kept what was asked for; where a knee is searched, whether it lies below the knee."""
    reason: str


class SearchResult(Record):
    """What a search found."""

    variable: Literal["concurrency", "request_rate"]
    criterion: str
    steps: list[SearchStep]
    """In the order in which they were tried."""
    best: float | None
    """Highest level that passed below the lowest that failed, or the knee; none when there is none."""
    least_failed: float | None
    """Lowest level that failed; none when none did."""
    is_settled: bool
    """Whether the search came to its end; otherwise the answer lies between the two, or beyond."""


class RunResult(Record, kw_only=True):
    """Everything one `pelton bench serve`, `sweep` or `search` measured over HTTP, or `latency` or `throughput` in this
    process."""

    schema: str
    kind: Literal["serve", "sweep", "search", "latency", "throughput"]
    status: Status
    stop_reason: str | None
    environment: Environment
    target: TargetInfo
    workload: Workload
    duration_s: float
    cells: list[CellResult]
    skipped_cells: list[str]
    search: SearchResult | None = None
    findings: list[Finding]
    metrics: list[MetricDefinition]
    analysis: Analysis = NO_ANALYSIS
    series: list[Series] = []
    series_missing: list[str] = []
    """What could not be watched, and why."""
    requests: list[RequestRecord]
