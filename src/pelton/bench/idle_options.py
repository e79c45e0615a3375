"""Options that would do nothing beside the others. They are refused, for who gives one expects it to count.

An option that was given its own default cannot be told from one that was not given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pelton.errors import ConfigError

LOADS = ("request_rate", "stages", "trace")
"""Options of which each is a load in the place of `concurrency`."""


def refuse_idle(options: Any) -> None:
    """Refuses options of `serve`, `sweep` or `search` that the others leave without effect.

    Raises:
        ConfigError: there is one; the text says what it would need.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name, why in _idle(options):
        value = getattr(options, name)
        if value != defaults[name]:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise ConfigError(f"{name} must be left out {why}, got {shown}")


def _idle(options: Any) -> Iterator[tuple[str, str]]:
    """(option, when it must be left out) of all that have no effect as the others are."""
    is_search = hasattr(options, "search_for")
    load = options.search_for if is_search else next((n for n in LOADS if getattr(options, n)), "concurrency")
    yield from _idle_of_load(load, rate="search_for request_rate" if is_search else "request_rate")
    if is_search:
        yield "concurrency", "of a search, which finds it; give search_start and search_most"
        yield from _idle_of_search(options)
    elif load != "concurrency":
        yield "concurrency", f"with {load}, which is a load of its own; give one of the two"
    if not options.cancellation_rate:
        yield "cancellation_delay", "unless cancellation_rate is above 0"
    if options.session_turns == 1:
        yield "think_time", "unless session_turns is above 1"
        yield "session_turn_tokens", "unless session_turns is above 1"
    yield from _idle_of_prompts(options)


def _idle_of_load(load: str, *, rate: str) -> Iterator[tuple[str, str]]:
    """`rate` is how a rate is asked for."""
    if load != "concurrency":
        yield "ramp_up", f"with {rate if load == 'request_rate' else load}; only concurrency has slots to fill"
    else:
        yield "max_in_flight", f"unless {rate}, stages of rates or a trace is given; a closed loop has its concurrency"
    if load != "request_rate":
        yield "arrivals", f"unless {rate} is given"
        yield "burstiness", f"unless {rate} is given"
    if load != "trace":
        yield "trace_speed_up", "unless trace is given"
    else:
        for name in ("prompt_tokens", "output_tokens"):
            yield name, "with trace, which has each request's own sizes"


def _idle_of_search(options: Any) -> Iterator[tuple[str, str]]:
    if options.goodput is None:
        yield "attainment", "unless goodput names the targets to attain"
    if not options.wants_knee:
        yield "knee_gain", "unless the search is for the knee: over concurrency, without goodput"


def _idle_of_prompts(options: Any) -> Iterator[tuple[str, str]]:
    if not options.shared_prefix_tokens:
        yield "num_prefixes", "unless shared_prefix_tokens is above 0"
    if not (options.prompt_text or options.prompt_data or options.prompt_repeat_text):
        yield "unique_prompts", "unless prompt_text or prompt_data is given; random words always begin unlike"
    if options.takes_turns_of_data:
        yield "session_turn_tokens", "with prompt_tokens data, whose conversations have turns of their own"
