"""Options of `pelton bench compare` and `pelton bench baseline`."""

from __future__ import annotations

from dataclasses import dataclass

from pelton.bench.load.options import require


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """What makes a comparison fail, and where it is written."""

    fail_if: tuple[str, ...] = ()
    """Condition under which the comparison fails, such as 'ttft_p95 > +10%' (change), 'ttft_p95 > +20ms' (change) or
    'output_throughput < 500' (the figure itself); may be given several times. A figure that was withheld fails
    too, as does a cell that the audit failed."""
    fail_if_significant: bool = False
    """A change fails only where its whole 95 % interval is beyond the threshold; else the change as measured counts."""
    force: bool = False
    """Compare results of different workloads too, and say so; hold rules against cells that the audit failed."""
    junit: str | None = None
    """JUnit XML file with a test case for each rule and cell."""
    output_dir: str | None = None
    """Directory for compare.html, compare.md and compare.json; none: only print."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        require(self.junit is None or bool(self.fail_if), "junit", self.junit, "given together with fail_if")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RuleOptions):
    """`pelton bench compare`."""

    results: tuple[str, ...]
    """results.json files, or directories that hold one; the first is what the others are held against."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.results) >= 2, "results", " ".join(self.results), "at least two results")


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """Where a baseline is."""

    name: str
    """Name of the baseline: letters, digits, dots, dashes and underscores."""
    baseline_dir: str | None = None
    """Directory that holds the baselines; none: baselines in PELTON_CACHE (default ~/.cache/pelton)."""


@dataclass(frozen=True, kw_only=True)
class BaselineSaveOptions(BaselineOptions):
    """`pelton bench baseline save`."""

    results: str
    """A results.json, or the directory that holds one."""
    replace: bool = False
    """Put it in the place of an older baseline of this name."""


@dataclass(frozen=True, kw_only=True)
class BaselineCheckOptions(BaselineOptions, RuleOptions):
    """`pelton bench baseline check`."""

    results: str
    """A results.json, or the directory that holds one."""
    save: bool = False
    """Store the results as the baseline where there is none yet, and in its place when no rule is broken."""
