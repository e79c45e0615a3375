"""Going on with a run that ended early."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pelton.bench.files import read_result
from pelton.bench.results import CellResult, PromptSpec, RequestRecord, RunResult, TargetInfo
from pelton.errors import ConfigError

SAME = ("model", "protocol", "endpoint", "extra_inputs", "sends_token_ids", "tokenizer_sha256", "output_control")


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
    """The cells of which nothing is missing, by id, and their requests."""
    cells = {c.id: c for c in result.cells if c.status == "complete" and c.num_trials == num_trials}
    return cells, [r for r in result.requests if r.cell in cells]


def check_same(earlier: RunResult | None, target: TargetInfo, prompts: PromptSpec) -> None:
    """Raises a ConfigError when the server is not the one that the earlier run measured, as far as can be told, or when
    the prompts are made otherwise."""
    if earlier is None:
        return
    for name in SAME:
        before, now = getattr(earlier.target, name), getattr(target, name)
        if before != now:
            raise ConfigError(f"resume: the earlier run had {name} {before!r} and this one has {now!r}; choose another "
                              "output_dir")
    # A file may have moved; its hash says whether it is the same.
    if msgspec.structs.replace(earlier.workload.prompt_spec, file=prompts.file) != prompts:
        raise ConfigError(f"resume: the earlier run's prompts were {earlier.workload.prompts}, and this one's are made "
                          "otherwise or of another file; choose another output_dir")
