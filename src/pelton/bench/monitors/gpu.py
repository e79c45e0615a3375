"""Power, use and memory of the GPUs of this machine, through NVML (nvidia-ml-py). Starts no CUDA context."""

from __future__ import annotations

from typing import Any

GIB = 2**30


class Unavailable(Exception):
    """The GPUs cannot be read; the text says why."""


class GpuReader:
    """Reads all GPUs, or those of `indices`.

    Raises:
        Unavailable: no NVML here, or no such GPU.
    """

    def __init__(self, indices: tuple[int, ...] = ()) -> None:
        try:
            import pynvml
        except ImportError:
            raise Unavailable("GPUs: nvidia-ml-py is not installed") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            found = range(pynvml.nvmlDeviceGetCount())
            wrong = [i for i in indices if i not in found]
            if wrong:
                raise Unavailable(f"GPUs: there is no GPU {wrong[0]}; this machine has {len(found)}")
            self._handles = [(i, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in indices or found]
        except pynvml.NVMLError as error:
            raise Unavailable(f"GPUs: NVML says {str(error).lower()}") from None

    def read(self) -> list[tuple[str, str, dict[str, str], float]]:
        """(name, unit, labels, value) of every GPU; what one does not report is left out."""
        values = []
        for index, handle in self._handles:
            labels = {"gpu": str(index)}
            for name, unit, ask in (("power", "W", self._power), ("utilization", "%", self._utilization),
                                    ("memory_used", "GiB", self._memory)):
                try:
                    values.append((name, unit, labels, ask(handle)))
                except self._nvml.NVMLError:
                    continue
        return values

    def _power(self, handle: Any) -> float:
        return self._nvml.nvmlDeviceGetPowerUsage(handle) / 1e3  # milliwatts

    def _utilization(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def _memory(self, handle: Any) -> float:
        return self._nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB
