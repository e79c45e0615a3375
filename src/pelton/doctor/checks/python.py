"""Interpreter and operating system."""

from __future__ import annotations

from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

OLDEST = (3, 11)
TESTED = ((3, 11), (3, 12))


def check(probe: Probe) -> list[Result]:
    version = probe.python_version()
    text = ".".join(map(str, version))
    if version[:2] < OLDEST:
        result = Result("python", "fail", f"{text}; Pelton needs 3.11 or newer",
                        "install Python 3.11 or 3.12 and make the virtual environment with it")
    elif version[:2] in TESTED:
        result = Result("python", "ok", text)
    else:
        result = Result("python", "info", f"{text}; Pelton is tested on 3.11 and 3.12")
    if probe.system() == "Linux":
        return [result]
    return [result, Result("system", "info", f"{probe.system()}: CPU only, GPUs are used on Linux")]
