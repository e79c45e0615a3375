"""What the GPU that kernels are launched on offers, asked once per device."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

LARGE_SHARED_BYTES = 160 * 1024
"""A program's shared memory on compute capability 8.0 and 9.0 is at least this; 8.6 and 8.9 have 99 KiB."""


@dataclass(frozen=True)
class GpuFeatures:
    """What kernels choose their shapes by."""

    capability: int
    """10 · major + minor of the compute capability."""
    num_processors: int
    shared_bytes: int
    """The most shared memory a program may have."""

    @property
    def can_launch_early(self) -> bool:
        """Whether a kernel may start before the one before it ends (programmatic dependent launch)."""
        return self.capability >= 90


_INTERPRETED = GpuFeatures(capability=80, num_processors=3, shared_bytes=LARGE_SHARED_BYTES)


@functools.cache
def gpu_features(device: torch.device) -> GpuFeatures:
    """The features of a device; a CPU, where kernels are interpreted, passes for a small GPU."""
    if device.type != "cuda":
        return _INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return GpuFeatures(10 * properties.major + properties.minor, properties.multi_processor_count,
                       properties.shared_memory_per_block_optin)
