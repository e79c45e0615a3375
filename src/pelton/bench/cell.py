"""What a cell is asked to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pelton.bench.counted import counted
from pelton.bench.load.options import LoadOptions
from pelton.bench.load.trace import TraceRequest
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.trial import AS_SIZED, Content
from pelton.bench.results import CellResult, LoadSpec, SessionSpec
from pelton.bench.summary import empty_cell

OPEN_WARMUP_S = 2.0


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What a cell is asked to measure."""

    load: LoadSpec
    prompt_tokens: int
    output_tokens: int
    num_warmup: int
    """Unmeasured requests at the beginning of each trial."""
    is_stream: bool
    content: Content = AS_SIZED
    """What the prompts are made of, and sizes that vary."""
    trace: Sequence[TraceRequest] = ()
    session: SessionSpec | None = None
    """Conversations instead of single requests; the loads then count and start conversations."""
    cancellation_delay_s: float | None = None
    """Cancelled requests are given up within so long; none: after a random number of chunks."""

    def check(self, prompts: PromptFactory) -> None:
        """Raises a ConfigError when there are no prompts of a size asked for."""
        if self.trace:
            prompts.check(min(r.prompt_tokens for r in self.trace))
        else:
            self.content.check(prompts, self.prompt_tokens)

    @property
    def remark(self) -> str | None:
        """What a trace asked for and cannot be had."""
        num_empty = sum(not request.output_tokens for request in self.trace)
        if not num_empty:
            return None
        return f"{counted(num_empty, 'request')} of the trace recorded no output and asked for 1 token"

    @property
    def id(self) -> str:
        kind = "" if self.is_stream else "-whole"
        sizes = "" if self.trace else f"-{self.content.key or f'p{self.prompt_tokens}-o{self.output_tokens}'}"
        if self.session is not None:
            sizes += f"-t{self.session.num_turns}"
        return f"{self.load.key}{sizes}{kind}"

    def empty(self) -> CellResult:
        """The cell before anything was measured."""
        return empty_cell(self.id, self.load, prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens,
                          is_stream=self.is_stream,
                          has_fixed_sizes=not self.trace and self.session is None and self.content.has_fixed_sizes)


def closed(concurrency: int, num_requests: int | None, *, duration_s: float | None = None,
           cancellation_rate: float = 0.0) -> LoadSpec:
    """A closed loop, by count or by time."""
    return LoadSpec(kind="closed", concurrency=concurrency, num_requests=num_requests, duration_s=duration_s,
                    cancellation_rate=cancellation_rate)


def session_of(options: LoadOptions) -> SessionSpec | None:
    """The conversations that the options ask for; none for single requests."""
    if options.session_turns == 1:
        return None
    return SessionSpec(num_turns=options.session_turns, turn_tokens=options.session_turn_tokens,
                       think_time_s=options.think_time)


def default_warmup(load: LoadSpec) -> int:
    """One request per slot at first; two seconds' worth of arrivals; none where the arrivals are given one by one."""
    if load.is_closed:
        return load.stages[0].concurrency if load.stages else load.concurrency
    return max(round(load.rate * OPEN_WARMUP_S), 1) if load.rate else 0
