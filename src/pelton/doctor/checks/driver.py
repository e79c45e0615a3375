"""The NVIDIA driver, and whether it is new enough for the CUDA that torch was built with."""

from __future__ import annotations

from pelton.doctor.checks.torch import REINSTALL
from pelton.doctor.facts import Driver, UnavailableError
from pelton.doctor.machine import container, device_files, num_pci_gpus, passthrough_mend
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

# NVIDIA's CUDA compatibility guide, minor version compatibility: the oldest driver of each CUDA major version.
OLDEST_DRIVER = {12: 525, 13: 580}


def check(probe: Probe) -> list[Result]:
    try:
        driver = probe.driver()
    except UnavailableError as error:
        return [_no_driver(probe, str(error))]
    found = f"{driver.version}, supports CUDA up to {_dotted(driver.cuda_version)}"
    if not driver.gpus:
        return [Result("driver", "info", f"{found}; it shows no GPU: CPU only")]
    needed = _torch_cuda(probe)
    if needed is None:
        return [Result("driver", "ok", found)]
    return [_match(driver, needed, found)]


def _match(driver: Driver, needed: tuple[int, int], found: str) -> Result:
    oldest = OLDEST_DRIVER.get(needed[0])
    is_too_old = driver.major < oldest if oldest else driver.cuda_version < needed
    if is_too_old:
        want = f"driver {oldest} or newer" if oldest else f"a driver for CUDA {_dotted(needed)}"
        return Result("driver", "fail", f"{found}; torch was built with CUDA {_dotted(needed)}, which needs {want}",
                      f"install {want}, or a torch for this one: {REINSTALL}")
    if driver.cuda_version < needed:
        return Result("driver", "ok", f"{found}; torch's CUDA {_dotted(needed)} is newer, which works within a major "
                                      "version")
    return Result("driver", "ok", f"{found}; torch's is {_dotted(needed)}")


def _no_driver(probe: Probe, reason: str) -> Result:
    files, num_pci, kind = device_files(probe), num_pci_gpus(probe), container(probe)
    if "version mismatch" in reason.lower():
        mend = "restart the container" if kind else "reboot, or unload and reload the nvidia kernel modules"
        return Result("driver", "fail", f"{reason}: the driver was upgraded while the old one was in use", mend)
    if files and kind:
        return Result("driver", "fail", f"{', '.join(files)} are here but the driver does not answer: {reason}",
                      "restart the container (its device rights are lost when systemd reloads on the host); if that "
                      f"does not help: {passthrough_mend(kind)}")
    if files:
        return Result("driver", "fail", f"{', '.join(files)} are here but the driver does not answer: {reason}",
                      "reinstall the NVIDIA driver's user libraries in the version of its kernel module, then reboot")
    if num_pci:
        mend = passthrough_mend(kind) if kind else "install the NVIDIA driver (580 or newer) and reboot"
        return Result("driver", "warn", f"{num_pci} NVIDIA GPU(s) on the PCI bus, but no driver ({reason}): CPU only",
                      mend)
    return Result("driver", "info", "no NVIDIA GPU: CPU only")


def _torch_cuda(probe: Probe) -> tuple[int, int] | None:
    try:
        version = probe.torch().cuda_version
    except UnavailableError:
        return None
    if version is None:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
