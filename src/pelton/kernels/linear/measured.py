"""What measured choices are good for: the kind of GPU and the kernels they were measured with. Knows no files."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pelton.config import from_dict
from pelton.errors import ConfigError
from pelton.hashing import digest
from pelton.kernels.linear.choices import Measurement

_KERNELS = Path(__file__).parent.parent
_SOURCES = ("linear", "norm", "activation")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where something was measured."""

    gpu_name: str
    """As "NVIDIA H200"."""
    capability: int
    """10 · major + minor of the compute capability."""
    driver: str
    torch: str
    triton: str
    kernels: str
    """Digest of the source of the kernels that were candidates."""

    @classmethod
    def here(cls, gpu_name: str, capability: int, driver: str = "") -> Setting:
        """This process's, for a GPU."""
        return cls(gpu_name=gpu_name, capability=capability, driver=driver, torch=str(torch.__version__),
                   triton=importlib.metadata.version("triton"), kernels=kernels_digest())

    def why_not_here(self, here: Setting) -> str | None:
        """Why what was measured in this setting says nothing about another; None: it does.

        Other versions of the driver, torch or Triton may shift a time by some percent, which seldom changes a choice.
        """
        if self.gpu_name != here.gpu_name:
            return f"measured on {self.gpu_name}, and this is {here.gpu_name}"
        if self.kernels != here.kernels:
            return "measured with other kernels than this version's"
        return None


@functools.cache
def kernels_digest() -> str:
    """Of the source of the kernels that products, norms and activations run."""
    files = sorted(path for name in _SOURCES for path in (_KERNELS / name).iterdir() if path.suffix in (".py", ".cu"))
    return digest(b"".join(path.name.encode() + path.read_bytes() for path in files))


def read_measurements(entries: Iterable[Any]) -> list[Measurement]:
    """The entries of a tuning.json.

    Raises:
        ConfigError: an entry is none of this version's.
    """
    measurements = [from_dict(Measurement, entry) for entry in entries]
    for measurement in measurements:
        try:
            measurement.choice  # noqa: B018  makes the kernel's config
        except TypeError:
            raise ConfigError(f"no such {measurement.kernel} config: {measurement.config}") from None
    return measurements
