"""The weights of a model while layers are being built from them."""

from __future__ import annotations

from torch import Tensor

from pelton.errors import CheckpointError


class WeightSource:
    """Canonical tensors by name. What a layer takes leaves the dict, so that memory of replaced layouts is freed."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def take(self, name: str) -> Tensor:
        """Removes and returns a tensor.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{name}: missing among the weights; convert the checkpoint again")
        return self._tensors.pop(name)

    def take_if(self, name: str, is_there: bool) -> Tensor | None:
        return self.take(name) if is_there else None
