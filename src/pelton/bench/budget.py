"""Shares a sweep's time out over its trials by their estimated size, and learns from those that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pelton.bench.cell import CellSpec
from pelton.bench.client import now_ns

# One decode step takes about as long as so many tokens of a prefill, before anything is known: between the few of a CPU
# and the few hundreds of a GPU.
DECODE_COST_TOKENS = 64.0
PRIOR_WEIGHT = 1e-3
ROOM = 1.15  # times its estimate that a trial gets which shall not be cut again


def work(spec: CellSpec) -> tuple[float, float]:
    """(prompt tokens to prefill, decode steps one after another) of one trial of a closed loop by count."""
    count = (spec.load.num_requests or 1) + spec.num_warmup
    return count * spec.prompt_tokens, count * spec.output_tokens / (spec.load.concurrency or 1)


def known_s(spec: CellSpec) -> float | None:
    """Seconds of a trial whose load goes by the clock; none where the server's speed decides."""
    load = spec.load
    if load.kind == "trace":
        return spec.trace[-1].at_s / load.speed_up if spec.trace else 0.0
    if load.stages:
        return load.stages_s
    if load.kind == "closed":
        return load.duration_s
    seconds = load.duration_s if load.duration_s is not None else (load.num_requests or 0) / load.rate
    return seconds + spec.num_warmup / load.rate


@dataclass
class Budget:
    """The time of a whole run.

    A trial's seconds are modelled as a * prompt tokens + b * decode steps. Least squares over the trials that ended
    (with the prior ratio of b to a as a faint extra observation) gives a and b; the trials to come get shares of the
    time left in proportion, so what one saves goes to the rest.
    """

    end_ns: int | None
    """When the run must end; none: no limit."""
    _measured: list[tuple[float, float, float]] = field(default_factory=list)

    def has_time(self) -> bool:
        return self.end_ns is None or now_ns() < self.end_ns

    def learn(self, spec: CellSpec, seconds: float, share_done: float) -> None:
        """Takes a trial that ended after `share_done` of its requests."""
        if known_s(spec) is None and share_done > 0:
            prefill, decode = work(spec)
            self._measured.append((prefill * share_done, decode * share_done, seconds))

    def estimate_s(self, spec: CellSpec) -> float:
        """Expected seconds of one trial; before anything was measured only ratios mean something."""
        known = known_s(spec)
        if known is not None:
            return known
        prefill, decode = work(spec)
        a, b = self._costs()
        return a * prefill + b * decode

    def has_room_for(self, spec: CellSpec, *, at_least_s: float) -> bool:
        """Whether the time left is enough for one more trial of a cell, which takes no less than `at_least_s`."""
        if self.end_ns is None:
            return False
        return ROOM * max(self.estimate_s(spec), at_least_s) <= (self.end_ns - now_ns()) / 1e9

    def deadline_ns(self, remaining: Sequence[CellSpec]) -> int | None:
        """When the first of the remaining trials must stop."""
        if self.end_ns is None:
            return None
        now = now_ns()
        estimates = [self.estimate_s(spec) for spec in remaining]
        return now + round(max(self.end_ns - now, 0) * estimates[0] / (sum(estimates) or 1.0))

    def _costs(self) -> tuple[float, float]:
        """(seconds per prompt token, seconds per decode step), neither negative."""
        a0, b0 = self._prior()
        pp = pd = dd = ps = ds = 0.0
        for prefill, decode, seconds in self._measured:
            pp, pd, dd = pp + prefill**2, pd + prefill * decode, dd + decode**2
            ps, ds = ps + prefill * seconds, ds + decode * seconds
        if not self._measured:
            return a0, b0
        weight_a, weight_b = PRIOR_WEIGHT * pp + 1e-30, PRIOR_WEIGHT * dd + 1e-30
        pp, dd, ps, ds = pp + weight_a, dd + weight_b, ps + weight_a * a0, ds + weight_b * b0
        determinant = pp * dd - pd * pd
        a, b = (ps * dd - ds * pd) / determinant, (ds * pp - ps * pd) / determinant
        if a < 0:
            a, b = 0.0, ds / dd
        elif b < 0:
            a, b = ps / pp, 0.0
        return a, b

    def _prior(self) -> tuple[float, float]:
        """Costs in the usual ratio, at the level of what was measured (1 before anything was)."""
        units = sum(p + DECODE_COST_TOKENS * d for p, d, _ in self._measured)
        level = sum(s for _, _, s in self._measured) / units if units else 1.0
        return level, DECODE_COST_TOKENS * level
