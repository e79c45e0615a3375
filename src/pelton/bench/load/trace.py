"""Recorded request logs, to be sent again: the Mooncake and the Azure LLM inference formats.

Mooncake (JSON lines): `timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one per block of 512
prompt tokens; requests whose lists begin alike had the same beginning. Azure (CSV or JSON lines): `TIMESTAMP`,
`ContextTokens`, `GeneratedTokens`.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.load.options import MOST_TOKENS
from pelton.errors import ConfigError

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a log."""

    at_s: float
    """Since the first request of the log."""
    prompt_tokens: int
    output_tokens: int
    """As it was recorded; 0 where nothing was generated."""
    blocks: tuple[int, ...] = ()
    """Names of the prompt's blocks of 512 tokens, the last may be shorter; equal names are equal text."""


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a log in the order of their times.

    Raises:
        ConfigError: it cannot be read, or a line is none of a known format; the text names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = _json_rows(text, path) if text.lstrip()[:1] == "{" else _csv_rows(text)
    found: list[TraceRequest] = []
    for line, row in rows:
        try:
            found.append(_read_row(row))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"trace {str(path)!r}, line {line}: neither a Mooncake nor an Azure request "
                              f"({error!r})") from None
    if not found:
        raise ConfigError(f"trace {str(path)!r} holds no requests")
    first = min(r.at_s for r in found)
    moved = [TraceRequest(r.at_s - first, r.prompt_tokens, r.output_tokens, r.blocks) for r in found]
    return sorted(moved, key=lambda r: r.at_s)


def shared_tokens(trace: Sequence[TraceRequest]) -> list[int]:
    """Leading prompt tokens of each request that another request of the trace begins with too."""
    counts = Counter(block for r in trace for block in r.blocks)
    shared = []
    for request in trace:
        num_blocks = 0
        for block in request.blocks:
            if counts[block] < 2:
                break
            num_blocks += 1
        shared.append(min(num_blocks * MOONCAKE_BLOCK_TOKENS, request.prompt_tokens))
    return shared


def _json_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append((number, msgspec.json.decode(line, type=dict[str, Any])))
            except msgspec.DecodeError as error:
                raise ConfigError(f"trace {str(path)!r}, line {number}: not a JSON object ({error})") from None
    return rows


def _csv_rows(text: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, row) for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2)]


def _read_row(row: dict[str, Any]) -> TraceRequest:
    if "input_length" in row:
        blocks = tuple(int(b) for b in row.get("hash_ids") or ())
        made = TraceRequest(float(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"]), blocks)
    else:
        made = TraceRequest(_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
    if not 1 <= made.prompt_tokens <= MOST_TOKENS or not 0 <= made.output_tokens <= MOST_TOKENS:
        raise ValueError(f"token counts must be positive and at most {MOST_TOKENS:,}")
    return made


def _seconds(stamp: str) -> float:
    """A date and time with or without a zone (UTC then), as seconds; digits beyond microseconds are kept."""
    head, dot, rest = stamp.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    when = datetime.datetime.fromisoformat(head + rest[len(digits):])
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return when.timestamp() + float(f"0{dot}{digits or 0}" if dot else 0)
