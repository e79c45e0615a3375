"""What this machine's processor, memory and first GPU can do. Knows no tensors and starts no CUDA context.

Memory bandwidth is measured. Arithmetic is estimated from the instruction sets and clock that the kernel reports; a
clock that turns up under load can beat the estimate, and `sources` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.physics import MIB, Arithmetic, Hardware

# FLOPs per clock and core, widest instruction set first: two 512-bit multiply-add units, two 256-bit ones, four 128-bit
# ones; a bf16 dot instruction doubles the rate and an int8 one quadruples it; AMX as in Intel's optimization manual.
_FLOPS_PER_CLOCK: dict[Arithmetic, tuple[tuple[str, int], ...]] = {
    "float32": (("avx512f", 64), ("fma", 32), ("asimd", 32), ("sse2", 8)),
    "bf16": (("amx_bf16", 1024), ("avx512_bf16", 128), ("bf16", 64)),
    "int8": (("amx_int8", 2048), ("avx512_vnni", 256), ("avx_vnni", 128), ("i8mm", 128), ("asimddp", 64)),
}
_FALLBACK_FLOPS_PER_CLOCK = 4
_FALLBACK_CLOCK_HZ = 2.5e9
_READ_BYTES_PER_THREAD = 128 * MIB
_MANY_CPUS = 8


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    """As "NVIDIA H200"."""
    architecture: str
    """As "sm_90"."""
    memory_bytes: int
    free_bytes: int
    driver: str
    """The driver's version."""


def first_gpu() -> Gpu | None:
    """The GPU that torch would use first; None without one, or with a torch that cannot use it. Asks NVML."""
    try:
        import pynvml as nvml

        if importlib.metadata.version("torch").endswith("+cpu"):
            return None
        nvml.nvmlInit()
    except Exception:  # no binding, no torch, no driver: each is a machine without a usable GPU
        return None
    try:
        handle = _first_handle(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if handle is None:
            return None
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        name, driver = nvml.nvmlDeviceGetName(handle), nvml.nvmlSystemGetDriverVersion()
        return Gpu(name=_text(name), architecture=f"sm_{major}{minor}", memory_bytes=memory.total,
                   free_bytes=memory.free, driver=_text(driver))
    except nvml.NVMLError:
        return None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _first_handle(nvml: Any, visible: str | None) -> Any:
    """NVML's handle of the first GPU that CUDA_VISIBLE_DEVICES leaves: indices or UUIDs; unset leaves all."""
    first = "0" if visible is None else visible.partition(",")[0].strip()
    if first.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(first)) if int(first) < nvml.nvmlDeviceGetCount() else None
    return nvml.nvmlDeviceGetHandleByUUID(first) if first.startswith(("GPU-", "MIG-")) else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@functools.cache
def measure_cpu() -> Hardware:
    """This machine as an entry of the hardware table; takes about half a second, once per process."""
    cpuinfo = read_text("/proc/cpuinfo")
    num_cores = count_cores(cpuinfo, len(available_cpus()))
    clock = clock_hz(cpuinfo)
    flags = set(re.findall(r"\S+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)[:1])))
    name = (re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE) or [platform.machine()])[0]
    per_clock = flops_per_clock(flags)
    return Hardware(
        name="cpu", aliases=(name,), architecture="cpu", memory_bytes=memory_bytes(),
        cache_bytes=cache_bytes(), bandwidth=measure_read_bandwidth(num_cores),
        flops={kind: num_cores * clock * rate for kind, rate in per_clock.items()},
        sources={
            "memory_bytes": "MemTotal, or the control group's limit when it is lower",
            "cache_bytes": "level-3 cache of one processor as the kernel reports it",
            "bandwidth": f"measured: {num_cores} threads reading {_READ_BYTES_PER_THREAD // MIB} MiB each",
            "flops": f"estimated: {num_cores} cores x {clock / 1e9:.2f} GHz x "
                     f"{per_clock['float32']} float32 FLOPs a clock ({name}); a higher clock under load can beat it",
        },
    )


def read_text(path: str | Path) -> str:
    """A file's text, or nothing where it does not exist or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def available_cpus() -> set[int]:
    """Logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def has_spare_cores() -> bool:
    """Whether a thread may look for something again and again instead of sleeping until it is woken, which takes
    longer: there are cores enough for all else that an engine and its server do."""
    return len(available_cpus()) >= _MANY_CPUS


def count_cores(cpuinfo: str, num_available: int) -> int:
    """Physical cores this process can use: threads of one core share its arithmetic units."""
    pairs = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE | re.DOTALL)
    return max(1, min(len(set(pairs)) or num_available, num_available))


def clock_hz(cpuinfo: str) -> float:
    """The highest clock that is told anywhere: cpufreq's maximum, the current clocks, the model name's."""
    told = [float(mhz) * 1e6 for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)]
    told += [float(ghz) * 1e9 for ghz in re.findall(r"@ ([\d.]+)GHz", cpuinfo)]
    maximum = read_text("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if maximum.isdigit():
        told.append(int(maximum) * 1e3)
    return max(told, default=_FALLBACK_CLOCK_HZ)


def flops_per_clock(flags: set[str]) -> dict[Arithmetic, int]:
    """FLOPs per clock and core by type; bf16 and int8 without instructions of their own run as float32."""
    rates: dict[Arithmetic, int] = {}
    for kind, known in _FLOPS_PER_CLOCK.items():
        own = next((rate for flag, rate in known if flag in flags), 0)
        rates[kind] = max(own, rates.get("float32", _FALLBACK_FLOPS_PER_CLOCK))
    return rates


def memory_bytes() -> int:
    """Main memory this process may use: the machine's, or its control group's limit when that is lower."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    total = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = read_text(path).strip()
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def cache_bytes() -> int:
    """The last-level cache that this machine's first processor sees; 0 where the kernel tells none."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM])", read_text(path).strip())
        if found:
            sizes.append(int(found[1]) * (1024 if found[2] == "K" else MIB))
    return max(sizes)


def measure_read_bandwidth(num_threads: int, *, num_rounds: int = 3,
                           bytes_per_thread: int = _READ_BYTES_PER_THREAD) -> float:
    """Bytes/s that `num_threads` read together from memory, best of `num_rounds`.

    Each thread looks with memchr for a byte that its buffer does not hold: a vectorised read that writes nothing and
    runs without the interpreter's lock.
    """
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    # Written, so that the pages are real: fresh zero pages all map to the same one.
    buffers = [bytearray(b"\x01") * bytes_per_thread for _ in range(num_threads)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    best = min(_time_together([functools.partial(memchr, address, 2, bytes_per_thread) for address in addresses])
               for _ in range(num_rounds))
    return num_threads * bytes_per_thread / best


def _time_together(jobs: list[Callable[[], object]]) -> float:
    """Seconds from a common start until the last job is done."""
    barrier = threading.Barrier(len(jobs) + 1)

    def run(job: Callable[[], object]) -> None:
        barrier.wait()
        job()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
