"""Scheduling policies: how many blocks must stay free when a sequence is admitted, and whether one may be preempted.

A policy is one entry of POLICIES; its name is `ExecutorConfig.scheduling_policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RUNNING_PER_SPARE_BLOCK = 4


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How blocks are given out."""

    can_preempt: bool
    """Whether a running sequence may lose its blocks, to be computed again later, when another needs one."""
    num_kept_free: Callable[[int, int], int]
    """(sequences running, blocks that they and the newcomer may still ask for) -> blocks left free by an admission."""


def _for_growth(num_running: int, num_promised: int) -> int:
    # Filled to the last block, the pool would preempt the newcomer as soon as a running sequence grows. With nothing
    # running nothing is kept, so that any valid sequence gets in.
    return num_running // RUNNING_PER_SPARE_BLOCK


def _all_promised(num_running: int, num_promised: int) -> int:
    return num_promised


POLICIES = {
    "max_utilization": Policy(can_preempt=True, num_kept_free=_for_growth),
    "guaranteed_no_evict": Policy(can_preempt=False, num_kept_free=_all_promised),
}
