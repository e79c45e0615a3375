"""Room and rights where engines and downloads are kept."""

from __future__ import annotations

from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

GIB = 2**30
LITTLE_BYTES = 20 * GIB
"""An 8B model in bf16 takes 16 GB as a checkpoint and as much again as an engine."""


def check(probe: Probe) -> list[Result]:
    home = probe.environ("HF_HOME") or "~/.cache/huggingface"
    return [_place(probe, "engine cache", probe.environ("PELTON_CACHE") or "~/.cache/pelton", "PELTON_CACHE"),
            _place(probe, "downloads", probe.environ("HF_HUB_CACHE") or f"{home}/hub", "HF_HUB_CACHE")]


def _place(probe: Probe, name: str, path: str, variable: str) -> Result:
    if not probe.can_write(path):
        return Result(name, "fail", f"{path} cannot be written",
                      f"set {variable} to a folder that can, or change the rights of {probe.existing_parent(path)}")
    free, _ = probe.disk(path)
    found = f"{path}: {free / GIB:,.1f} GiB free"
    if free < LITTLE_BYTES:
        return Result(name, "warn", f"{found}; an 8B model takes 16 GB, and its engine as much",
                      f"make room, or set {variable} to a folder on a larger disk")
    return Result(name, "ok", found)
