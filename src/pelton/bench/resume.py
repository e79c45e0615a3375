"""Going on with a run that ended early."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pelton.bench.files import read_result
from pelton.bench.results import CellResult, RequestRecord, RunResult, TargetInfo, Workload
from pelton.errors import ConfigError

SAME_TARGET = ("model", "protocol", "endpoint", "extra_inputs", "sends_token_ids", "tokenizer_sha256", "output_control")
SAME_WORKLOAD = ("temperature", "session", "cancellation_delay_s")


def earlier_run(directory: Path, kind: str) -> RunResult | None:
    """The run whose results are in the directory; none when there are none.

    Raises:
        ConfigError: they cannot be read, or are those of another command.
    """
    path = directory / "results.json"
    if not path.exists():
        return None
    found = read_result(path)
    if found.kind != kind:
        raise ConfigError(f"resume: {str(path)!r} is the result of bench {found.kind}, not of bench {kind}; choose "
                          "another output_dir")
    return found


def whole_cells(result: RunResult, *, num_trials: int) -> tuple[dict[str, CellResult], list[RequestRecord]]:
    """The cells of which nothing is missing, by id, and their requests. A search may have measured some of its levels
    more often."""
    cells = {c.id: c for c in result.cells if c.status == "complete"
             and (c.num_trials == num_trials or (result.kind == "search" and c.num_trials > num_trials))}
    return cells, [r for r in result.requests if r.cell in cells]


def check_same(earlier: RunResult | None, target: TargetInfo, workload: Workload) -> None:
    """Raises a ConfigError when the server is not the one that the earlier run measured, as far as can be told, or when
    requests are made otherwise; loads and sizes may be others, for their cells are."""
    if earlier is None:
        return
    pairs = [(name, getattr(earlier.target, name), getattr(target, name)) for name in SAME_TARGET]
    pairs += [(name, getattr(earlier.workload, name), getattr(workload, name)) for name in SAME_WORKLOAD]
    for name, before, now in pairs:
        if before != now:
            raise ConfigError(f"resume: the earlier run had {name} {before!r} and this one has {now!r}; choose another "
                              "output_dir")
    # A file may have moved; its hash says whether it is the same.
    if msgspec.structs.replace(earlier.workload.prompt_spec, file=workload.prompt_spec.file) != workload.prompt_spec:
        raise ConfigError(f"resume: the earlier run's prompts were {earlier.workload.prompts}, and this one's are made "
                          "otherwise or of another file; choose another output_dir")
