"""Torch's build, and whether it can use the GPUs that are there."""

from __future__ import annotations

from pelton.doctor.facts import Torch, UnavailableError
from pelton.doctor.machine import driver_or_none, hides_all_gpus, num_gpus
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

TORCH_RANGE = ">=2.11,<2.14"
# uv chooses the build for the machine's driver, or the CPU's; pip from PyPI alone always brings CUDA.
REINSTALL = f"uv pip install --reinstall --torch-backend=auto 'torch{TORCH_RANGE}'"
_NEWER_DRIVER = f"install a newer NVIDIA driver, or a torch for this one: {REINSTALL}"
# Parts of CUDA's messages and what mends them.
_CUDA_ERRORS = (
    ("system not yet initialized", "start NVSwitch's manager on the host: systemctl enable --now nvidia-fabricmanager; "
                                   "its version must equal the driver's"),
    ("driver version is insufficient", _NEWER_DRIVER),
    ("driver on your system is too old", _NEWER_DRIVER),
    ("out of memory", "free the GPU: the line `gpus` names the processes on it"),
    ("no cuda-capable device", "make the GPU visible: check CUDA_VISIBLE_DEVICES, and the line `container`"),
    ("no cuda gpus are available", "make the GPU visible: check CUDA_VISIBLE_DEVICES, and the line `container`"),
    ("no kernel image", f"use a torch built for this GPU: {REINSTALL}"),
)


def check(probe: Probe) -> list[Result]:
    try:
        torch = probe.torch()
    except UnavailableError as error:
        if str(error) == "not installed":
            return [Result("torch", "info", "not installed: plan, bench and doctor work; pip install 'pelton[engine]' "
                                            "adds the engine")]
        return [Result("torch", "fail", str(error), REINSTALL)]
    driver = driver_or_none(probe)
    if torch.cuda_version is None:
        if driver and driver.gpus:
            return [Result("torch", "fail", f"{torch.version} is a CPU build, but this machine has "
                                            f"{len(driver.gpus)} GPU(s)", REINSTALL)]
        return [Result("torch", "ok", f"{torch.version}, CPU only")]
    built = f"{torch.version}, built with CUDA {torch.cuda_version}"
    if driver is None or not driver.gpus:
        return [Result("torch", "info", f"{built}; runs on the CPU here, a CPU build would save several GB")]
    if hides_all_gpus(probe):
        return [Result("torch", "info", f"{built}; CUDA_VISIBLE_DEVICES hides every GPU: CPU only")]
    if not torch.is_available:
        return [Result("torch", "fail", f"{built}, cannot use the GPU: {torch.error or 'no reason given'}",
                       _mend(torch.error or ""))]
    return [_coverage(torch, built, num_gpus(probe))]


def _coverage(torch: Torch, built: str, num_seen: int) -> Result:
    """Whether torch has kernels for every GPU."""
    missing = sorted({f"sm_{major}{minor}" for major, minor in torch.capabilities
                      if not _is_covered((major, minor), torch.architectures)})
    if missing:
        found = f"{built} has no kernels for {', '.join(missing)} (it has {', '.join(torch.architectures)})"
        return Result("torch", "fail", found, f"use a torch built for this GPU: {REINSTALL}")
    return Result("torch", "ok", f"{built}, uses {len(torch.capabilities)} of {num_seen} GPU(s)")


def _is_covered(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Machine code runs on the same major version with an equal or higher minor one; PTX on anything newer."""
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and capability >= built:
            return True
        if kind == "sm" and capability[0] == built[0] and capability[1] >= built[1]:
            return True
    return False


def _mend(error: str) -> str:
    for part, mend in _CUDA_ERRORS:
        if part in error.lower():
            return mend
    return "run `nvidia-smi` and `python -c 'import torch; torch.cuda.init()'`, and read what they say"
