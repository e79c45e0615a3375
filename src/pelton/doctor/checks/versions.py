"""Installed packages against what Pelton asks for, and pairs that are known not to go together."""

from __future__ import annotations

from collections.abc import Callable

from packaging.requirements import Requirement
from packaging.version import Version

from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

# What each torch release was built and tested with: its own wheel asks for triton 3.6.0, 3.7.0 and 3.7.1.
TRITON_OF_TORCH = {(2, 11): (3, 6), (2, 12): (3, 7), (2, 13): (3, 7)}
OLDEST_GLIBC = (2, 28)
_SHOWN = ("pelton", "torch", "triton", "xgrammar")


def check(probe: Probe) -> list[Result]:
    faults = [fault for rule in (_outside_ranges, *KNOWN_BAD) for fault in rule(probe)]
    versions = {name: probe.version_of(name) for name in _SHOWN}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return faults or [Result("versions", "ok", shown or "run from a source tree")]


def _outside_ranges(probe: Probe) -> list[Result]:
    """What pelton[engine] asks for and is missing or another version; without torch, what pelton asks for."""
    has_engine = probe.version_of("torch") is not None
    results = []
    for text in probe.requires("pelton"):
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": "engine" if has_engine else ""}):
            continue
        installed = probe.version_of(wanted.name)
        if installed is not None and wanted.specifier.contains(installed, prereleases=True):
            continue
        package = "pelton[engine]" if has_engine else "pelton"
        found = f"{wanted.name} {installed or 'is missing'}; Pelton asks for {wanted.specifier}"
        results.append(Result("versions", "warn", found, f"pip install --upgrade '{package}'"))
    return results


def _torch_and_triton(probe: Probe) -> list[Result]:
    torch, triton = _release(probe, "torch"), _release(probe, "triton")
    wanted = TRITON_OF_TORCH.get(torch or (0, 0))
    if triton is None or wanted is None or triton == wanted:
        return []
    pair = f"triton {triton[0]}.{triton[1]} beside torch {torch[0]}.{torch[1]}"
    right = f"{wanted[0]}.{wanted[1]}"
    return [Result("versions", "warn", f"{pair}; that torch was built for triton {right} and is not tested with others",
                   f"pip install 'triton=={right}.*'")]


def _old_pynvml(probe: Probe) -> list[Result]:
    version = _release(probe, "pynvml")
    if version is None or version >= (12, 0):
        return []
    found = f"pynvml {version[0]}.{version[1]} installs a module of the same name over nvidia-ml-py's"
    return [Result("versions", "warn", found, "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py")]


def _old_glibc(probe: Probe) -> list[Result]:
    glibc = probe.glibc_version()
    if glibc is None or glibc >= OLDEST_GLIBC:
        return []
    return [Result("versions", "warn", f"glibc {glibc[0]}.{glibc[1]}: torch's wheels need 2.28 or newer",
                   "use Debian 10, Ubuntu 20.04, RHEL 8 or newer, or a container of one")]


def _release(probe: Probe, distribution: str) -> tuple[int, int] | None:
    version = probe.version_of(distribution)
    if version is None:
        return None
    parsed = Version(version)
    return parsed.major, parsed.minor


KNOWN_BAD: tuple[Callable[[Probe], list[Result]], ...] = (_torch_and_triton, _old_pynvml, _old_glibc)
