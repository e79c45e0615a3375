"""Whether GPUs reach into this container, or out of this host into containers."""

from __future__ import annotations

from pelton.doctor.machine import container, device_files, num_gpus, passthrough_mend
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

CONTROL_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_CUDA_LIBRARIES = ("/usr/lib/*/libcuda.so.1", "/usr/lib64/libcuda.so.1", "/usr/lib/libcuda.so.1",
                   "/usr/local/nvidia/lib*/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1",
                   "/usr/local/cuda*/compat/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1")


def check(probe: Probe) -> list[Result]:
    kind, files = container(probe), device_files(probe)
    if not files:
        return _without_devices(probe, kind)
    where = f"in {kind}" if kind else "on the host"
    problems = _device_problems(probe, kind, files)
    if problems:
        return problems
    results = [Result("container", "ok", f"{where}: {len(files)} GPU device file(s), control files, libcuda")]
    if kind is None:
        results += _host_runtime(probe)
    return results


def _without_devices(probe: Probe, kind: str | None) -> list[Result]:
    if num_gpus(probe):  # WSL shows GPUs through /dev/dxg
        return []
    if kind:
        return [Result("container", "info", f"in {kind} without GPU device files: CPU only; where the host has a GPU, "
                                            f"{passthrough_mend(kind)}")]
    return [Result("container", "info", "not in a container")]


def _device_problems(probe: Probe, kind: str | None, files: list[str]) -> list[Result]:
    missing = [path for path in CONTROL_FILES if not probe.exists(path)]
    mend = passthrough_mend(kind) if kind else "load the modules: modprobe nvidia; modprobe nvidia-uvm; then nvidia-smi"
    results = []
    if missing:
        found = f"{', '.join(files)} without {', '.join(missing)}: CUDA cannot start"
        results.append(Result("container", "fail", found, mend))
    locked = [path for path in (*files, *CONTROL_FILES) if probe.exists(path) and not probe.can_access(path)]
    if locked:
        group = "run as a user of the files' group, or give the rights back: chmod a+rw"
        results.append(Result("container", "fail", f"this user may not open {', '.join(locked)}",
                              f"{group} {' '.join(locked)}"))
    if not _has_cuda_library(probe):
        mend = ("start the container with `-e NVIDIA_DRIVER_CAPABILITIES=compute,utility` and `--gpus all`" if kind
                else "install the NVIDIA driver's user libraries (libcuda1 or libnvidia-compute)")
        results.append(Result("container", "fail", "the GPU's device files are here, but libcuda.so.1 is not", mend))
    return results


def _has_cuda_library(probe: Probe) -> bool:
    folders = [folder for folder in (probe.environ("LD_LIBRARY_PATH") or "").split(":") if folder]
    return any(probe.glob(pattern) for pattern in (*_CUDA_LIBRARIES, *(f"{f}/libcuda.so.1" for f in folders)))


def _host_runtime(probe: Probe) -> list[Result]:
    """On a host with Docker: can its containers get the GPUs?"""
    if probe.which("docker") is None:
        return []
    if probe.which("nvidia-ctk") or probe.which("nvidia-container-runtime"):
        return [Result("container", "ok", "Docker and the NVIDIA container toolkit are installed: `--gpus all` works")]
    return [Result("container", "info", "Docker is here without the NVIDIA container toolkit: to use GPUs in "
                                        f"containers, {passthrough_mend('Docker')}")]
