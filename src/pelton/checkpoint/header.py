"""The header of a safetensors file, checked byte range by byte range. Knows no tensors, only where they lie.

Format: 8 bytes little-endian length, a JSON object of that length, then the data; each tensor's `data_offsets` are
relative to the data, which they cover without holes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
              "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPE_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file and what it is."""

    name: str
    code: str
    """The format's name of the element type, as "BF16"."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file in the order of their data.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or its header is damaged or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, f"its header should take {length:,} bytes of the file's {size:,}: "
                                     "truncated, or no safetensors file")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        header = json.loads(text)
    except ValueError:
        raise _damaged(path, "its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = sorted((_entry(path, name, item, 8 + length) for name, item in header.items()),
                     key=lambda entry: (entry.start, entry.stop))
    _check_cover(path, entries, 8 + length, size)
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, item: Any, data_start: int) -> TensorEntry:
    try:
        code, shape, (start, stop) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"tensor {name!r} lacks a usable dtype, shape or data_offsets") from None
    if code not in ITEM_BYTES:
        raise CheckpointError(f"{path}: tensor {name!r} has the element type {code!r}, which is not supported")
    if stop - start != math.prod(shape) * ITEM_BYTES[code]:
        raise _damaged(path, f"tensor {name!r} of type {code} and shape {list(shape)} cannot take "
                             f"{stop - start:,} bytes")
    return TensorEntry(name, code, shape, data_start + start, data_start + stop)


def _check_cover(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for entry in entries:
        if entry.start < position:
            raise _damaged(path, f"tensor {entry.name!r} overlaps the one before it")
        if entry.start > position:
            raise _damaged(path, f"{entry.start - position:,} bytes before tensor {entry.name!r} belong to no tensor")
        position = entry.stop
    if position > size:
        raise _damaged(path, f"truncated: {size:,} of {position:,} bytes; fetch the file again")
    if position < size:
        raise _damaged(path, f"{size - position:,} bytes after the last tensor belong to none")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged: {reason}")
