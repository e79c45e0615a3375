"""Writes a safetensors file tensor by tensor, laid out in a given order, each starting at a multiple of 64 bytes.

safetensors' own writer wants all tensors in memory and sorts them; here they lie in the order in which they are loaded,
and each is written when it comes. The format allows no holes, so gaps are tensors of their own, under names
that begin with "_pad.": they come up only where a tensor's size is no multiple of 64.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pelton.checkpoint.header import DTYPE_CODES, ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

ALIGN_BYTES = 64
PAD_PREFIX = "_pad."


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written."""

    name: str
    dtype: str
    """"float32", "bfloat16" or "float16"."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[DTYPE_CODES[self.dtype]]


class TensorFileWriter:
    """A safetensors file whose tensors are known beforehand. Several threads may write tensors at once.

    Args:
        path: is created or overwritten in place; the caller renames the folder it stands in.
        plans: the tensors, in the order in which they will lie.
        metadata: strings for the header's `__metadata__`.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, plans: Iterable[TensorPlan], metadata: dict[str, str] | None = None):
        plans = list(plans)
        header = _header(plans, {"format": "pt", **(metadata or {})})
        self._places: dict[str, tuple[TensorPlan, int]] = {}
        stop = len(header)
        for plan in plans:
            self._places[plan.name] = plan, stop
            stop += plan.num_bytes + -plan.num_bytes % ALIGN_BYTES
        self._left = set(self._places)
        self._file = path.open("wb", buffering=0)
        _write_all(self._file.fileno(), memoryview(header), 0)
        self._file.truncate(stop)  # fillers between tensors are zeros

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one of the tensors to its place."""
        plan, start = self._places[name]
        assert tuple(tensor.shape) == plan.shape, f"{name} {tuple(tensor.shape)} is not {plan}"
        assert str(tensor.dtype) == f"torch.{plan.dtype}", f"{name} is {tensor.dtype}"
        self._left.remove(name)
        _write_all(self._file.fileno(), tensor_bytes(tensor), start)

    def close(self) -> None:
        """Closes a file that is complete."""
        assert not self._left, f"{len(self._left)} tensors were not written"
        self._file.close()

    def abandon(self) -> None:
        """Closes a file that will not be completed."""
        self._file.close()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order as bytes; copies only what is not contiguous."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _header(plans: list[TensorPlan], metadata: dict[str, str]) -> bytes:
    items: dict[str, object] = {"__metadata__": metadata}
    position = num_pads = 0
    for plan in plans:
        stop = position + plan.num_bytes
        items[plan.name] = {"dtype": DTYPE_CODES[plan.dtype], "shape": plan.shape, "data_offsets": [position, stop]}
        position = stop + -stop % ALIGN_BYTES
        if position > stop:
            items[f"{PAD_PREFIX}{num_pads}"] = {"dtype": "U8", "shape": [position - stop],
                                                "data_offsets": [stop, position]}
            num_pads += 1
    text = json.dumps(items, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN_BYTES)  # so that the data is aligned too
    return len(text).to_bytes(8, "little") + text


def _write_all(fd: int, content: memoryview, position: int) -> None:
    """One call may write less than it is given."""
    while content:
        num_bytes = os.pwrite(fd, content, position)
        content, position = content[num_bytes:], position + num_bytes
