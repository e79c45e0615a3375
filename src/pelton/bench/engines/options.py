"""Options of `pelton bench engines`."""

from __future__ import annotations

from dataclasses import dataclass

from pelton.bench.compare.options import RuleOptions
from pelton.bench.load.options import require

FROM_RECIPE = ("url", "model", "endpoint", "tokenizer", "resume", "duration_budget", "seed", "strict", "output_format",
               "trace", "api_key")
"""Options of a sweep that a recipe's engine sets, or that make no sense here."""


@dataclass(frozen=True, kw_only=True)
class EnginesOptions(RuleOptions):
    """`pelton bench engines`; the options of the load are those of `pelton bench sweep`."""

    output_dir: str = "bench-engines"
    """Directory for each engine's results and log, and for compare.html, compare.md and compare.json."""
    keep_running: bool = False
    """Start all servers at once and keep them until the end (memory must suffice); else each is started for each
    round, so that only one is there at a time."""
    force: bool = False
    """Go on when an engine serves another model, or its results are of another workload, and say so; hold rules against
    cells that the audit failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.output_dir), "output_dir", self.output_dir, "a directory")
