"""Options of a load: how requests arrive, and how many."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pelton.bench.load.stages import read_stages
from pelton.bench.results import LoadSpec, LoadStage
from pelton.errors import ConfigError

DEFAULT_NUM_REQUESTS = 32
MOST_TOKENS = 10_000_000  # beyond any model's longest; prompts of a mistyped size would be made for hours


def require(ok: bool, name: str, value: object, want: str) -> None:
    """Raises a ConfigError that names the option unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} must be {want}, got {value!r}")


def require_list(name: str, values: tuple[float, ...], *, least: float) -> None:
    """Raises a ConfigError unless the values are distinct finite numbers, at least one, none below `least`."""
    require(len(values) >= 1, name, values, "at least one number")
    for value in values:
        require(math.isfinite(value) and value >= least, name, value, f"at least {least:g}")
    require(len(set(values)) == len(values), name, values, "a list without repeats")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How the requests of each cell arrive."""

    num_requests: int | None = field(default=None, metadata={"aliases": ("--request-count", "--num-prompts")})
    """Measured requests per cell and trial; none: as many as measurement_duration, the stages or the trace hold,
    else 32."""
    measurement_duration: float | None = None
    """Seconds in which a cell's measured requests are sent, instead of a number of requests; those in flight at the
    end are waited for."""
    num_warmup: int | None = field(default=None, metadata={"aliases": ("--warmup-request-count",)})
    """Unmeasured requests at the beginning of each trial; none: one per slot, or the arrivals of two seconds. Measured
    requests follow without a pause."""
    num_trials: int = 1
    """Repeats of every cell, with other prompts, the cells of each repeat one after another."""
    ramp_up: float | None = None
    """Seconds over which a closed loop fills its slots, one after another; none: all at once."""
    request_rate: tuple[float, ...] = ()
    """Requests per second whatever the server does (open loop), instead of concurrency; one cell each."""
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    """Gaps between arrivals at a request_rate: exponential, equal, or gamma with the given burstiness."""
    burstiness: float | None = None
    """Shape of gamma arrivals: below 1 in bursts, 1 as Poisson, above 1 evener. Given, arrivals are gamma."""
    stages: str | None = None
    """A load that changes, instead of concurrency: RATE:SECONDS or FROM-TO:SECONDS joined by commas (5:30,5-20:60),
    Poisson arrivals; or cN:SECONDS, cN-M:SECONDS or cN:COUNTreq (c4:30,c4-16:60,c16:200req), so many in flight; or a
    JSON file."""
    trace: str | None = None
    """A recorded log to send again, instead of concurrency: Mooncake or Azure LLM inference format."""
    trace_speed_up: float = 1.0
    """By how much the trace is sent faster than it was recorded."""
    max_in_flight: int = 4096
    """Most requests in flight of an open loop; more wait, which the result says."""
    cancellation_rate: float = 0.0
    """Share of the requests that the client gives up in the middle of the answer."""
    cancellation_delay: float | None = None
    """Cancelled requests are given up at a random time within so many seconds; none: after a random number of
    chunks (one second without streaming)."""
    session_turns: int = 1
    """Turns of each conversation; above 1, the loads start conversations, and a turn is sent when the answer before it
    has arrived (chat only)."""
    session_turn_tokens: int = 64
    """Tokens of text that the user adds in each turn after the first."""
    think_time: float = 0.0
    """Mean seconds between an answer and the next turn, exponentially distributed."""
    workers: str = "auto"
    """Client processes: a number, or auto for one, and more where its core turns out too slow."""
    calibrate: bool = True
    """First find out the client's own error at these loads (a few seconds, kept for a day)."""

    def __post_init__(self) -> None:
        require(self.num_requests is None or self.num_requests >= 1, "num_requests", self.num_requests, "at least 1")
        require(self.num_warmup is None or self.num_warmup >= 0, "num_warmup", self.num_warmup, "0 or more")
        require(self.num_trials >= 1, "num_trials", self.num_trials, "at least 1")
        _require_seconds("measurement_duration", self.measurement_duration)
        _require_seconds("cancellation_delay", self.cancellation_delay)
        _require_seconds("ramp_up", self.ramp_up)
        if self.request_rate:
            require_list("request_rate", self.request_rate, least=0)
            require(min(self.request_rate) > 0, "request_rate", self.request_rate, "above 0")
        burstiness = self.burstiness
        require(burstiness is None or (math.isfinite(burstiness) and burstiness > 0), "burstiness", burstiness,
                "above 0")
        require(self.arrivals != "gamma" or burstiness is not None, "burstiness", burstiness,
                "given for gamma arrivals")
        require(self.arrivals != "constant" or burstiness is None, "burstiness", burstiness,
                "left out with constant arrivals, or arrivals be gamma")
        require(math.isfinite(self.trace_speed_up) and self.trace_speed_up > 0, "trace_speed_up", self.trace_speed_up,
                "above 0")
        require(self.max_in_flight >= 1, "max_in_flight", self.max_in_flight, "at least 1")
        require(0 <= self.cancellation_rate <= 1, "cancellation_rate", self.cancellation_rate, "from 0 to 1")
        require(self.session_turns >= 1, "session_turns", self.session_turns, "at least 1")
        require(1 <= self.session_turn_tokens <= MOST_TOKENS, "session_turn_tokens", self.session_turn_tokens,
                f"from 1 to {MOST_TOKENS:,}")
        require(math.isfinite(self.think_time) and self.think_time >= 0, "think_time", self.think_time, "0 or more")
        if self.session_turns > 1:
            require(self.trace is None, "trace", self.trace, "left out with session_turns")
            require(not self.cancellation_rate, "cancellation_rate", self.cancellation_rate, "0 with session_turns")
        is_count = self.workers.isdecimal() and int(self.workers) >= 1
        require(self.workers == "auto" or is_count, "workers", self.workers, "auto or a number of at least 1")
        given = [name for name in ("request_rate", "stages", "trace") if getattr(self, name)]
        require(len(given) <= 1, " and ".join(given), "both", "given one at a time")

    def check_endpoint(self, endpoint: str) -> None:
        """Refuses conversations on a route that has none.

        Raises:
            ConfigError: session_turns is above 1 and the endpoint is not chat.
        """
        require(self.session_turns == 1 or endpoint == "chat", "session_turns", self.session_turns,
                "1 unless endpoint is chat")

    def loads(self, concurrency: tuple[int, ...]) -> list[LoadSpec]:
        """The loads asked for: closed loops of these sizes, unless an open loop was asked for.

        Raises:
            ConfigError: the stages cannot be read.
        """
        by_time = self.measurement_duration is not None
        count = self.num_requests or (None if by_time else DEFAULT_NUM_REQUESTS)
        common = {"duration_s": self.measurement_duration, "cancellation_rate": self.cancellation_rate}
        if self.stages is not None:
            return [self._staged(read_stages(self.stages), common)]
        if self.trace is not None:
            return [LoadSpec(kind="trace", trace=str(Path(self.trace)), speed_up=self.trace_speed_up,
                             num_requests=self.num_requests, max_in_flight=self.max_in_flight, **common)]
        if self.request_rate:
            kind = "gamma" if self.burstiness is not None else self.arrivals
            return [LoadSpec(kind=kind, rate=rate, burstiness=self.burstiness, num_requests=count,
                             max_in_flight=self.max_in_flight, **common) for rate in self.request_rate]
        return [LoadSpec(kind="closed", concurrency=c, num_requests=count, ramp_up_s=self.ramp_up, **common)
                for c in concurrency]

    def _staged(self, stages: list[LoadStage], common: dict[str, Any]) -> LoadSpec:
        if stages[0].concurrency is None:
            return LoadSpec(kind="stages", stages=stages, num_requests=self.num_requests,
                            max_in_flight=self.max_in_flight, **common)
        require(self.max_in_flight == LoadOptions.max_in_flight, "max_in_flight", self.max_in_flight,
                "left out with stages of requests in flight, which say so themselves")
        counts = [stage.num_requests for stage in stages]
        require(self.session_turns == 1 or not any(counts), "stages", self.stages, "in seconds with session_turns")
        count = sum(counts) if None not in counts else None
        return LoadSpec(kind="closed_stages", concurrency=max(s.most_in_flight for s in stages), stages=stages,
                        num_requests=self.num_requests if count is None else min(count, self.num_requests or count),
                        **common)


def _require_seconds(name: str, value: float | None) -> None:
    require(value is None or (math.isfinite(value) and value > 0), name, value, "above 0 seconds")
