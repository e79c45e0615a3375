"""What an offline driver measured, as a record, a table and a file. It runs no engine itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pelton.bench.environment import describe_environment
from pelton.bench.files import to_json, write_atomic
from pelton.bench.results import OFFLINE_SCHEMA, Finding, OfflineRecord, OfflineResult
from pelton.bench.table import make_console, offline_table, print_findings


class MeasuredRuns(Protocol):
    """The measured runs of one batch size, as the engine's driver hands them over."""

    batch_size: int
    input_len: int
    output_len: int
    wall_s: list[float]
    num_output_tokens: list[int]
    num_cached_tokens: int
    step_host_ms: float


def record_throughput(runs: Sequence[MeasuredRuns], *, model: str, output: str | None = None,
                      as_json: bool = False) -> int:
    """Audits the runs, prints them and writes them as JSON where `output` names a file. Returns the exit status.

    Raises:
        ConfigError: the file cannot be written.
    """
    records = [OfflineRecord.from_runs(
        batch_size=r.batch_size, input_len=r.input_len, output_len=r.output_len, wall_s=r.wall_s,
        num_output_tokens=r.num_output_tokens, num_cached_tokens=r.num_cached_tokens, step_host_ms=r.step_host_ms)
        for r in runs]
    result = OfflineResult(schema=OFFLINE_SCHEMA, model=model, records=records,
                           environment=describe_environment(_command(records, model)),
                           findings=[f for r in records for f in audit_record(r)])
    if output is not None:
        write_atomic(Path(output).expanduser(), to_json(result))
    if as_json:
        print(to_json(result).decode(), end="")
    else:
        console = make_console()
        console.print(offline_table(result))
        console.print()
        print_findings(console, result.findings)
    return 0


def audit_record(record: OfflineRecord) -> Iterator[Finding]:
    """What in an offline record does not mean what it seems to."""
    name, asked = f"batch {record.batch_size}", record.batch_size * record.output_len
    short = [n for n in record.num_output_tokens if n != asked]
    if short:
        yield Finding(name="output_lengths_differ", severity="failure", cells=[name],
                      evidence=f"{name}: {len(short)} of {record.num_runs} runs gave {min(short)} tokens instead of "
                               f"{asked}", advice="The rates compare different work; requests ended early.")
    if record.num_cached_tokens:
        share = record.num_cached_tokens / (record.num_runs * record.batch_size * record.input_len)
        yield Finding(name="prompts_cached", severity="failure", cells=[name],
                      evidence=f"{name}: {share:.0%} of the prompt tokens came from the prefix cache",
                      advice="Prefill was not measured whole; use prompts that were not run before.")


def _command(records: Sequence[OfflineRecord], model: str) -> str:
    sizes = ",".join(str(r.batch_size) for r in records)
    return shlex.join(["pelton", "bench", "throughput", model, "--batch-sizes", sizes,
                       "--input-len", str(records[0].input_len), "--output-len", str(records[0].output_len),
                       "--num-runs", str(records[0].num_runs)]) if records else "pelton bench throughput"
