"""What each request of a cell asks for and when it is due, before any text is made."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelton.bench.load.arrivals import arrivals
from pelton.bench.load.trace import TraceRequest, shared_tokens
from pelton.bench.results import LoadSpec

CANCEL_WHOLE_WITHIN_S = 1.0  # answers that are not streamed have no chunks to count


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request, text aside."""

    index: int
    """Position in the plan; warm-up requests count for themselves."""
    is_warmup: bool
    prompt_tokens: int
    output_tokens: int
    entry: int | None = None
    """Of the data set that the prompt is taken from."""
    due_ns: int | None = None
    """Since the load's start; none: when a slot is free."""
    stage: str | None = None
    prefix_tokens: int = 0
    blocks: tuple[int, ...] = ()
    """Names of the prompt's blocks; equal names are equal text."""
    cancel_after_events: int | None = None
    cancel_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """What a request asks for."""

    prompt_tokens: int
    """0: the data set's prompt as it is."""
    output_tokens: int
    entry: int | None = None
    """Of the data set."""


def make_shapes(load: LoadSpec, *, sizes: Iterator[Size], num_warmup: int, is_stream: bool, seed: str,
                trace: Sequence[TraceRequest] = (), cancellation_delay_s: float | None = None) -> Iterator[Shape]:
    """All requests of one trial, warm-up first, in the order of sending; equal seeds make equal shapes.

    A closed loop that goes by time has no end: whoever sends it stops. `trace` gives times and sizes of a trace load.
    """
    if load.kind == "trace":
        timed = _traced(load, trace)
    elif load.is_closed:
        timed = ((None, None, size, 0, ()) for size in sizes)
    else:
        timed = ((t, stage, next(sizes), 0, ()) for t, stage in arrivals(load, f"{seed}/arrivals"))
    cancels = _cancellations(load, is_stream, f"{seed}/cancellations", cancellation_delay_s)
    measured_from_s: float | None = None
    for position, (at_s, stage, size, num_shared, blocks) in enumerate(timed):
        index = position - num_warmup if position >= num_warmup else position
        is_warmup = position < num_warmup
        if not is_warmup:
            if load.num_requests is not None and index >= load.num_requests:
                return
            if at_s is not None:
                measured_from_s = at_s if measured_from_s is None else measured_from_s
                if load.duration_s is not None and at_s - measured_from_s >= load.duration_s:
                    return
        after_events, after_ns = (None, None) if is_warmup else next(cancels)(size.output_tokens)
        yield Shape(index=index, is_warmup=is_warmup, prompt_tokens=size.prompt_tokens,
                    output_tokens=size.output_tokens, entry=size.entry, stage=stage,
                    due_ns=None if at_s is None else round(at_s * 1e9), prefix_tokens=num_shared, blocks=blocks,
                    cancel_after_events=after_events, cancel_after_ns=after_ns)


def _traced(load: LoadSpec, trace: Sequence[TraceRequest]) -> Iterator[tuple]:
    for request, num_shared in zip(trace, shared_tokens(trace)):
        size = Size(request.prompt_tokens, max(request.output_tokens, 1))
        yield request.at_s / load.speed_up, None, size, num_shared, request.blocks


def _cancellations(load: LoadSpec, is_stream: bool, seed: str, delay_s: float | None) -> Iterator:
    """For each measured request a function from its output tokens to (events, nanoseconds) after which to give up."""
    rng = random.Random(seed)
    if delay_s is None and not is_stream:
        delay_s = CANCEL_WHOLE_WITHIN_S
    while True:
        is_cancelled, where = rng.random() < load.cancellation_rate, rng.random()
        if not is_cancelled:
            yield lambda _: (None, None)
        elif delay_s is not None:
            yield lambda _, where=where: (None, round(where * delay_s * 1e9))
        else:
            yield lambda num_out, where=where: (1 + int(where * max(num_out - 1, 1)), None)
