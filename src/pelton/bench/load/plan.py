"""What a load is to do, in plain data that can cross to another process."""

from __future__ import annotations

import msgspec

from pelton.bench.results import LoadStage


class Planned(msgspec.Struct, kw_only=True, array_like=True, omit_defaults=True):
    """One request to be sent."""

    index: int
    """Position in the plan; warm-up requests count for themselves."""
    is_warmup: bool
    request: bytes
    """The whole HTTP request."""
    requested_prompt_tokens: int
    client_prompt_tokens: int
    requested_output_tokens: int
    prefix_tokens: int = 0
    due_ns: int | None = None
    """Since the load's start; none: as soon as a slot is free."""
    stage: str | None = None
    session: str | None = None
    turn: int | None = None
    cancel_after_events: int | None = None
    """Give it up when so many events of its stream have arrived."""
    cancel_after_ns: int | None = None
    """Give it up so long after sending."""


class LoadJob(msgspec.Struct, kw_only=True):
    """How a process is to send its part of a load. Times are on the benchmark's clock."""

    concurrency: int | None
    """Slots of a closed loop; none: an open loop that follows the requests' own times."""
    stages: list[LoadStage] = []
    """By which a closed loop opens and closes its slots; empty: all are always open."""
    first_slot: int = 0
    """This process's first slot among those of all processes."""
    slot_step: int = 1
    """From one slot of this process to its next."""
    board: str | None = None
    """File by which the processes of a staged load agree (board.py); none: there is one process."""
    start_ns: int = 0
    """Time 0 of an open loop."""
    ramp_up_ns: int = 0
    """A closed loop fills its slots one after another in so long."""
    duration_ns: int | None = None
    """A closed loop starts measured requests for so long after its first."""
    deadline_ns: int | None = None
    """When to start no more requests and to skip what is left of the warm-up; every slot still gets a measured one."""
    max_in_flight: int = 4096
    """Of an open loop; what is due beyond them waits."""
    give_up_ns: int = 300_000_000_000
    """A request that has waited so long for max_in_flight ends the sending."""
    max_failures_in_a_row: int | None = None
    """So many failed requests with no good one between them end the load."""
