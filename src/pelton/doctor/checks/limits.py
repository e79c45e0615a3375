"""Limits of this process that show up under load: open files, shared memory, locked memory."""

from __future__ import annotations

from pelton.doctor.machine import container, num_gpus
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

GIB, MIB = 2**30, 2**20
MIN_FILES = 4096
"""One descriptor per connection and a few hundred of our own: 1,024, a common default, is one busy benchmark."""
MIN_SHM_BYTES = GIB
"""NCCL keeps buffers of every pair of ranks there; Docker's default is 64 MiB."""


def check(probe: Probe) -> list[Result]:
    return [_files(probe), _shared_memory(probe), _locked_memory(probe)]


def _files(probe: Probe) -> Result:
    soft, hard = probe.limit("RLIMIT_NOFILE")
    if soft < 0 or soft >= MIN_FILES:
        return Result("open files", "ok", _amount(soft))
    can_raise = hard < 0 or hard >= MIN_FILES
    mend = "ulimit -n 65536" if can_raise else "raise nofile in /etc/security/limits.conf"
    if not can_raise and container(probe):
        mend = "start the container with `--ulimit nofile=65536`"
    return Result("open files", "warn", f"{soft}: about {max(soft - 200, 0)} connections at once", mend)


def _shared_memory(probe: Probe) -> Result:
    if not probe.exists("/dev/shm"):
        return Result("/dev/shm", "info", "none on this system")
    free, total = probe.disk("/dev/shm")
    found = f"{free / MIB:,.0f} of {total / MIB:,.0f} MiB free"
    if free >= MIN_SHM_BYTES:
        return Result("/dev/shm", "ok", found)
    if num_gpus(probe) < 2:
        return Result("/dev/shm", "info", f"{found}; several GPUs would need 1 GiB")
    mend = ("start the container with `--shm-size=8g` or `--ipc=host`" if container(probe)
            else "mount -o remount,size=8G /dev/shm, or remove old files there")
    return Result("/dev/shm", "warn", f"{found}; ranks on several GPUs need 1 GiB", mend)


def _locked_memory(probe: Probe) -> Result:
    soft, _ = probe.limit("RLIMIT_MEMLOCK")
    note = "" if soft < 0 or num_gpus(probe) < 2 else "; RDMA between hosts needs it unlimited"
    return Result("locked memory", "info" if note else "ok", _amount(soft, unit=MIB, name=" MiB") + note)


def _amount(value: int, *, unit: int = 1, name: str = "") -> str:
    return "unlimited" if value < 0 else f"{value // unit:,}{name}"
