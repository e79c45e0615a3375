"""The stages of a piecewise load, as a person writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pelton.bench.results import LoadStage
from pelton.errors import ConfigError

WANT = ("stages must be RATE:SECONDS or FROM-TO:SECONDS (5:30,5-20:60), or for requests in flight cN:SECONDS, "
        "cN-M:SECONDS or cN:COUNTreq (c4:30,c4-16:60,c16:200req), several joined by commas, or a JSON file with a list "
        "of them")
COUNT_UNIT = "req"


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    """A stage as a JSON file has it."""

    name: str | None = None
    rate: float | None = None
    end_rate: float | None = None
    concurrency: int | None = None
    end_concurrency: int | None = None
    duration_s: float | None = None
    num_requests: int | None = None


def read_stages(text: str) -> list[LoadStage]:
    """`5:30,5-20:60` (5/s for 30 s, then a ramp from 5/s to 20/s in 60 s), `c4:30,c16:200req` (4 in flight for 30 s,
    then 16 until 200 requests were sent), or a file with
    `[{"rate": 5, "end_rate": 20, "duration_s": 60, "name": "ramp"}]` or
    `[{"concurrency": 4, "end_concurrency": 16, "duration_s": 60}]`; the ends and `name` may be left out, and
    `num_requests` may stand for `duration_s` where requests in flight do not change.

    Raises:
        ConfigError: neither; the text says what is wrong.
    """
    if text.endswith(".json"):
        return _checked(_read_file(Path(text).expanduser()))
    return _checked([_read_part(part.strip()) for part in text.split(",")])


def _read_part(part: str) -> _Written:
    levels, _, length = part.partition(":")
    is_closed = levels.startswith("c")
    low, _, high = levels.removeprefix("c").partition("-")
    try:
        if not is_closed:
            return _Written(rate=float(low), end_rate=float(high or low), duration_s=float(length))
        made = _Written(concurrency=int(low), end_concurrency=int(high or low))
        if length.endswith(COUNT_UNIT):
            made.num_requests = int(length.removesuffix(COUNT_UNIT))
        else:
            made.duration_s = float(length)
        return made
    except ValueError:
        raise ConfigError(f"{WANT}, got {part!r}") from None


def _read_file(path: Path) -> list[_Written]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[_Written])
    except OSError as error:
        raise ConfigError(f"stages {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{WANT}, got {str(path)!r}: {error}") from None


def _checked(written: Sequence[_Written]) -> list[LoadStage]:
    if not written:
        raise ConfigError(WANT)
    made = [_make(stage, number) for number, stage in enumerate(written, 1)]
    if len({stage.concurrency is None for stage in made}) > 1:
        raise ConfigError("stages: all must be rates, or all requests in flight")
    if not any(stage.concurrency or stage.rate or stage.end_rate for stage in made):
        raise ConfigError("stages: no stage has a rate above 0")
    if len({stage.name for stage in made}) < len(made):
        raise ConfigError("stages: names must differ")
    return made


def _make(stage: _Written, number: int) -> LoadStage:
    if (stage.rate is None) == (stage.concurrency is None):
        raise ConfigError(f"stages: stage {number} needs either a rate or a concurrency")
    if stage.duration_s is not None and not (math.isfinite(stage.duration_s) and stage.duration_s > 0):
        raise ConfigError(f"stages: stage {number} needs seconds above 0")
    return _of_rates(stage, number) if stage.concurrency is None else _of_concurrency(stage, number)


def _of_rates(stage: _Written, number: int) -> LoadStage:
    rate, end = stage.rate, stage.rate if stage.end_rate is None else stage.end_rate
    if not all(map(math.isfinite, (rate, end))) or min(rate, end) < 0:
        raise ConfigError(f"stages: stage {number} needs rates of 0 or more")
    if stage.duration_s is None or stage.num_requests is not None or stage.end_concurrency is not None:
        raise ConfigError(f"stages: stage {number} is a rate, and needs seconds")
    rates = f"{rate:g}/s" if rate == end else f"{rate:g} to {end:g}/s"
    return LoadStage(name=stage.name or f"{number}: {rates}", rate=rate, end_rate=end, duration_s=stage.duration_s)


def _of_concurrency(stage: _Written, number: int) -> LoadStage:
    start, end = stage.concurrency, stage.concurrency if stage.end_concurrency is None else stage.end_concurrency
    if min(start, end) < 1:
        raise ConfigError(f"stages: stage {number} needs at least 1 request in flight")
    if (stage.duration_s is None) == (stage.num_requests is None) or stage.end_rate is not None:
        raise ConfigError(f"stages: stage {number} needs either seconds or a number of requests")
    if stage.num_requests is not None and (stage.num_requests < 1 or start != end):
        raise ConfigError(f"stages: stage {number} needs at least 1 request, and seconds where requests in flight "
                          "change")
    levels = f"{start} in flight" if start == end else f"{start} to {end} in flight"
    return LoadStage(name=stage.name or f"{number}: {levels}", concurrency=start, end_concurrency=end,
                     duration_s=stage.duration_s, num_requests=stage.num_requests)
