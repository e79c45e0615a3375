"""What ranks that share a layer say to each other. Models call a Group; one rank alone says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Group(Protocol):
    """Ranks that split each layer between them (tensor parallelism)."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, on every rank; may take x's memory."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x side by side along the last dim, in order of rank, on every rank."""


class SingleRank:
    """A group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x
