"""Whether two results were asked for the same work.

What was asked for is what a user chose and what changes the figures: the loads, the sizes, how prompts were made, how
the output's length was asked for, warm-up, the protocol, further fields of the requests, and the tokenizer that sizes
are counted with. The server is not part of it.
Nor is the seed, because prompts are fresh in every run on purpose, nor the number of trials, which changes how sure a
figure is and not what it is, nor whether the vocabulary was enough for them. A time budget cuts cells short, which the
audit says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.results import CellResult, LoadSpec, LoadStage, RunResult

WORK_TOLERANCE = 0.02
"""Mean real sizes may differ by so much, relatively, before cells count as different work."""

# What is not worth telling of a load or a stage; of both every field but the first has a default.
DEFAULTS = {field.name: msgspec.to_builtins(getattr(record, field.name))
            for record in (LoadSpec(kind="closed"), LoadStage(name=""))
            for field in msgspec.structs.fields(record)[1:]}


def asked_for(result: RunResult) -> dict[str, Any]:
    """What was asked for, field by field, in plain data."""
    workload, target = result.workload, result.target
    fields = msgspec.to_builtins(workload)
    for name in ("seed", "num_trials", "duration_budget_s", "request_timeout_s", "loads", "first_tokens_unique",
                 "trial_first_tokens_unique"):
        fields.pop(name)
    loads = [_load(load) for load in msgspec.to_builtins(workload.loads)]
    return {**fields, "loads": sorted(loads, key=repr), "kind_of_answers": sorted({_answers(c) for c in result.cells}),
            "protocol": target.protocol, "endpoint": target.endpoint, "extra_inputs": target.extra_inputs,
            "sends_token_ids": target.sends_token_ids, "tokenizer_sha256": target.tokenizer_sha256}


def workload_hash(result: RunResult) -> str:
    """Sixteen hex digits; equal ones stand for equal workloads."""
    canonical = msgspec.json.encode(asked_for(result), order="sorted")
    return hashlib.sha256(canonical).hexdigest()[:16]


def workload_differences(base: RunResult, other: RunResult) -> list[str]:
    """The fields in which the workloads differ, with both values."""
    return list(_differences(asked_for(base), asked_for(other)))


def work_differences(base: CellResult, other: CellResult) -> list[str]:
    """Where two cells did different work though the same was asked for."""
    found = []
    for metric in ("prompt_tokens", "output_tokens"):
        ours, theirs = base.distribution(metric), other.distribution(metric)
        if ours is None or theirs is None:
            continue
        if abs(theirs.mean - ours.mean) > WORK_TOLERANCE * ours.mean:
            found.append(f"{metric.replace('_', ' ')} {ours.mean:g} and {theirs.mean:g} on average")
    return found


def _load(fields: dict[str, Any]) -> dict[str, Any]:
    """A trace by its file's name: where it lies differs between machines."""
    return fields if fields.get("trace") is None else {**fields, "trace": Path(fields["trace"]).name}


def _answers(cell: CellResult) -> str:
    return "streamed" if cell.is_stream else "whole"


def _differences(base: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for name in sorted(base.keys() | other.keys()):
        if base.get(name) != other.get(name):
            yield f"{name}: {_show(base.get(name))} and {_show(other.get(name))}"


def _show(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[" + "; ".join(", ".join(f"{k} {_show(v)}" for k, v in item.items() if v != DEFAULTS.get(k))
                               for item in value) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)
