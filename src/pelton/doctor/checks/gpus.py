"""Each GPU: memory, clocks, and who else is on it."""

from __future__ import annotations

from pelton.doctor.facts import Gpu
from pelton.doctor.machine import driver_or_none, hides_all_gpus
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

GIB = 2**30
BUSY_BYTES = GIB
"""Memory in use beside the driver's own, from which on a GPU counts as taken."""


def check(probe: Probe) -> list[Result]:
    driver = driver_or_none(probe)
    if driver is None:
        return []
    results = [result for gpu in driver.gpus for result in _check_gpu(gpu)]
    visible = probe.environ("CUDA_VISIBLE_DEVICES")
    if visible is not None and driver.gpus:
        what = "none" if hides_all_gpus(probe) else "only these"
        results.append(Result("gpus", "info", f"CUDA_VISIBLE_DEVICES={visible!r}: programs see {what}"))
    return results


def _check_gpu(gpu: Gpu) -> list[Result]:
    name = f"gpu {gpu.index}"
    clocks = f", {gpu.clock_mhz} of {gpu.max_clock_mhz} MHz" if gpu.clock_mhz and gpu.max_clock_mhz else ""
    found = f"{gpu.name}, {gpu.total_bytes / GIB:.1f} GiB, {gpu.used_bytes / GIB:.1f} in use{clocks}"
    results = [Result(name, "ok", found)]
    if gpu.used_bytes >= BUSY_BYTES or gpu.processes:
        who = ", ".join(_describe(gpu)) or "by processes that cannot be seen from here"
        results.append(Result(name, "warn", f"{gpu.used_bytes / GIB:.1f} GiB are taken: {who}",
                              "end them, take another GPU with CUDA_VISIBLE_DEVICES, or lower --free-memory-fraction"))
    if gpu.slowdowns:
        results.append(Result(name, "warn", f"clocks are held down: {', '.join(gpu.slowdowns)}",
                              "check cooling, power supply and `nvidia-smi -q -d PERFORMANCE`; "
                              "`nvidia-smi -rgc` and `-rac` undo set clocks"))
    if gpu.is_mig:
        results.append(Result(name, "info", "split by MIG: a program sees one slice"))
    return results


def _describe(gpu: Gpu) -> list[str]:
    return [f"{p.name} (pid {p.pid}" + (f", {p.used_bytes / GIB:.1f} GiB)" if p.used_bytes else ")")
            for p in gpu.processes]
