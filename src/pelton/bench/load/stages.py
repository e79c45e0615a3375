"""The stages of a piecewise load, as a person writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.results import LoadStage
from pelton.errors import ConfigError

WANT = "stages must be RATE:SECONDS or FROM-TO:SECONDS, several joined by commas, or a JSON file with a list of them"


def read_stages(text: str) -> list[LoadStage]:
    """`5:30,5-20:60` (5/s for 30 s, then a ramp from 5/s to 20/s in 60 s), or a file with
    `[{"rate": 5, "end_rate": 20, "duration_s": 60, "name": "ramp"}]`; `end_rate` and `name` may be left out.

    Raises:
        ConfigError: neither; the text says what is wrong.
    """
    if text.endswith(".json"):
        return _read_file(Path(text).expanduser())
    stages = []
    for part in text.split(","):
        rates, _, seconds = part.strip().partition(":")
        low, _, high = rates.partition("-")
        try:
            stages.append((float(low), float(high or low), float(seconds), None))
        except ValueError:
            raise ConfigError(f"{WANT}, got {part.strip()!r}") from None
    return _checked(stages)


def _read_file(path: Path) -> list[LoadStage]:
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        stages = [(float(e["rate"]), float(e.get("end_rate", e["rate"])), float(e["duration_s"]), e.get("name"))
                  for e in entries]
    except OSError as error:
        raise ConfigError(f"stages {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{WANT}, got {str(path)!r}: {error!r}") from None
    return _checked(stages)


def _checked(stages: Sequence[tuple[float, float, float, Any]]) -> list[LoadStage]:
    made = []
    for number, (rate, end_rate, duration_s, name) in enumerate(stages, 1):
        if not all(map(math.isfinite, (rate, end_rate, duration_s))) or min(rate, end_rate) < 0 or duration_s <= 0:
            raise ConfigError(f"stages: stage {number} needs rates of 0 or more and seconds above 0")
        rates = f"{rate:g}/s" if rate == end_rate else f"{rate:g} to {end_rate:g}/s"
        made.append(LoadStage(name=str(name or f"{number}: {rates}"), rate=rate, end_rate=end_rate,
                              duration_s=duration_s))
    if not any(s.rate or s.end_rate for s in made):
        raise ConfigError("stages: no stage has a rate above 0")
    return made
