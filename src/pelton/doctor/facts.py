"""What the driver and torch say about this machine, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A program that holds memory on a GPU."""

    pid: int
    name: str
    used_bytes: int | None
    """None where the driver does not tell, as in containers."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as NVML sees it."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    clock_mhz: int | None = None
    """Of the multiprocessors, now."""
    max_clock_mhz: int | None = None
    slowdowns: tuple[str, ...] = ()
    """Reasons other than idling and power limits for which the clock is held down."""
    is_mig: bool = False
    num_nvlinks: int = 0
    """Active links."""
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver as NVML tells it."""

    version: str
    """As "580.65.06"."""
    cuda_version: tuple[int, int]
    """The newest CUDA it supports, as (13, 0)."""
    gpus: tuple[Gpu, ...]
    peers: dict[tuple[int, int], str]
    """For each pair of indices what P2P reads between them come to: "ok" or the reason why not."""

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


@dataclass(frozen=True, kw_only=True)
class Torch:
    """Torch as a process of its own found it."""

    version: str
    cuda_version: str | None
    """CUDA that it was built with; None for a CPU build."""
    is_available: bool = False
    """Whether it can use a GPU."""
    error: str | None = None
    """Why it cannot, in CUDA's words."""
    capabilities: tuple[tuple[int, int], ...] = ()
    """Compute capability of each GPU it sees."""
    architectures: tuple[str, ...] = ()
    """What it has kernels for, as "sm_90"."""
    peers: tuple[tuple[int, int], ...] = ()
    """Pairs of GPUs with peer access."""


class UnavailableError(Exception):
    """The driver or torch could not be asked; the text says why."""
