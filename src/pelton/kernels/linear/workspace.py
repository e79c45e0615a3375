"""Memory that the products of few rows share: partial sums of tiles that several programs worked on."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pelton.kernels.gpu_features import gpu_features

MAX_PARTS_PER_SM = 8
MAX_TILE = 128 * 128
"""Outputs of the largest tile that many programs may share, rows times weight rows."""
MAX_TILES = 1 << 14
MAX_ROWS = 128


@dataclass(frozen=True)
class Workspace:
    """One per device. Kernels use it one after the other on one stream, and leave `arrivals` zero."""

    num_sms: int
    partials: Tensor
    """[parts, MAX_TILE] float32."""
    sums: Tensor
    """[parts, MAX_ROWS] float32: sums of squares, for a fused norm."""
    arrivals: Tensor
    """[MAX_TILES] int32, programs that have left their part of each tile."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.itemsize for tensor in (self.partials, self.sums, self.arrivals))

    def has_room(self, num_parts: int, part_size: int, num_rows: int) -> bool:
        """Whether so many partial tiles, and their sums of squares, fit."""
        return num_parts * part_size <= self.partials.numel() and num_parts * num_rows <= self.sums.numel()


def workspace_bytes(num_sms: int) -> int:
    """What the workspace of a device with so many multiprocessors takes."""
    return 4 * (num_sms * MAX_PARTS_PER_SM * (MAX_TILE + MAX_ROWS) + MAX_TILES)


@functools.cache
def workspace(device: torch.device) -> Workspace:
    """The device's workspace, made when first asked for: before any graph is captured."""
    num_sms = gpu_features(device).num_processors
    num_parts = num_sms * MAX_PARTS_PER_SM
    return Workspace(num_sms, torch.empty(num_parts, MAX_TILE, device=device),
                     torch.empty(num_parts, MAX_ROWS, device=device),
                     torch.zeros(MAX_TILES, dtype=torch.int32, device=device))
