"""What Triton needs to compile kernels: a C compiler, Python's headers, ptxas."""

from __future__ import annotations

from pelton.doctor.machine import num_gpus
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

_COMPILERS = ("cc", "gcc", "clang")


def check(probe: Probe) -> list[Result]:
    if not num_gpus(probe):
        return [Result("compiler", "info", "not needed: without a GPU no kernels are compiled")]
    results = []
    given = probe.environ("CC")
    compiler = (probe.which(given) if given else None) or next(filter(None, map(probe.which, _COMPILERS)), None)
    if compiler is None:
        results.append(Result("compiler", "fail", "no C compiler: Triton cannot launch a kernel",
                              "apt-get install gcc, or set CC to one"))
    headers = probe.python_headers()
    if not probe.exists(headers):
        major, minor, _ = probe.python_version()
        results.append(Result("compiler", "fail", f"{headers} is missing: Triton cannot build its launcher",
                              f"apt-get install python{major}.{minor}-dev"))
    ptxas = _ptxas(probe)
    if ptxas is None:
        results.append(Result("compiler", "fail", "no ptxas: neither Triton's own nor TRITON_PTXAS_PATH",
                              "pip install --force-reinstall triton, or set TRITON_PTXAS_PATH to the CUDA toolkit's"))
    return results or [Result("compiler", "ok", f"{compiler}, Python.h, {ptxas}")]


def _ptxas(probe: Probe) -> str | None:
    given = probe.environ("TRITON_PTXAS_PATH")
    if given:
        return given if probe.exists(given) else None
    triton = probe.package_dir("triton")
    own = f"{triton}/backends/nvidia/bin/ptxas"
    return own if triton and probe.exists(own) else None
