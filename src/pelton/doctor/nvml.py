"""Asks NVML, the driver's management library, through nvidia-ml-py. Starts no CUDA context."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any

from pelton.doctor.facts import Driver, Gpu, GpuProcess, UnavailableError

_SLOWDOWNS = {
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonHwThermalSlowdown": "too hot (hardware)",
    "nvmlClocksEventReasonSwThermalSlowdown": "too hot",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
    "nvmlClocksEventReasonApplicationsClocksSetting": "application clocks set below the maximum",
    "nvmlClocksEventReasonUserDefinedClocks": "clocks locked by the user",
}
# NVML_P2P_CAPS_INDEX_READ: the binding's own constant is the tuple (0,), which its function refuses.
_P2P_READ = 0
_PEER_FAULTS = {
    "NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED": "the chipset does not support it",
    "NVML_P2P_STATUS_GPU_NOT_SUPPORTED": "the GPU does not support it",
    "NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED": "they hang on different root complexes",
    "NVML_P2P_STATUS_DISABLED_BY_REGKEY": "disabled by a driver setting",
    "NVML_P2P_STATUS_NOT_SUPPORTED": "not supported",
}


def read_driver() -> Driver:
    """Driver, GPUs and how they reach each other.

    Raises:
        UnavailableError: nvidia-ml-py is missing, or NVML does not start; the text is NVML's own.
    """
    try:
        import pynvml as nvml
    except ImportError:
        raise UnavailableError("nvidia-ml-py is not installed") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise UnavailableError(str(error)) from None
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return Driver(version=_text(nvml.nvmlSystemGetDriverVersion()),
                      cuda_version=(version // 1000, version % 1000 // 10),
                      gpus=tuple(_read_gpu(nvml, i, handle) for i, handle in enumerate(handles)),
                      peers=_read_peers(nvml, handles))
    except nvml.NVMLError as error:
        raise UnavailableError(str(error)) from None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    reasons = _optional(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
    slowdowns = tuple(text for name, text in _SLOWDOWNS.items() if reasons & getattr(nvml, name, 0))
    mig = _optional(nvml, "nvmlDeviceGetMigMode", handle)
    running = _optional(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []
    return Gpu(
        index=index, name=_text(nvml.nvmlDeviceGetName(handle)), total_bytes=memory.total, used_bytes=memory.used,
        clock_mhz=_optional(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        max_clock_mhz=_optional(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        slowdowns=slowdowns, is_mig=bool(mig and mig[0]), num_nvlinks=_count_nvlinks(nvml, handle),
        processes=tuple(GpuProcess(pid=p.pid, name=_process_name(p.pid), used_bytes=p.usedGpuMemory)
                        for p in running))


def _read_peers(nvml: Any, handles: list[Any]) -> dict[tuple[int, int], str]:
    peers = {}
    for i, one in enumerate(handles):
        for j, other in enumerate(handles):
            if i == j:
                continue
            status = _optional(nvml, "nvmlDeviceGetP2PStatus", one, other, _P2P_READ)
            if status == nvml.NVML_P2P_STATUS_OK:
                peers[i, j] = "ok"
            elif status is not None:
                faults = {getattr(nvml, name, None): text for name, text in _PEER_FAULTS.items()}
                peers[i, j] = faults.get(status, "unknown")
    return peers


def _count_nvlinks(nvml: Any, handle: Any) -> int:
    states = (_optional(nvml, "nvmlDeviceGetNvLinkState", handle, link)
              for link in range(nvml.NVML_NVLINK_MAX_LINKS))
    return sum(1 for state in states if state)


def _optional(nvml: Any, function: str, *args: Any) -> Any:
    """An answer that not every GPU, driver, container or version of the binding gives; None without one."""
    try:
        return getattr(nvml, function)(*args)
    except (nvml.NVMLError, AttributeError, ctypes.ArgumentError):
        return None


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "outside this container"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
