"""The first GPU as the driver's library tells of it; a module of ours stands in for the library."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from pelton.host import Gpu, first_gpu

GPUS = (("NVIDIA H200", (9, 0), 140, 100), (b"NVIDIA L40S", (8, 9), 45, 44))


class NVMLError(Exception):
    """As the library's."""


def fake_nvml(**changes) -> SimpleNamespace:
    nvml = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: len(GPUS),
        nvmlDeviceGetHandleByIndex=lambda index: GPUS[index],
        nvmlDeviceGetHandleByUUID=lambda uuid: GPUS[1],
        nvmlDeviceGetName=lambda gpu: gpu[0], nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu[1],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=gpu[2], free=gpu[3]),
        nvmlSystemGetDriverVersion=lambda: "580.159.03")
    vars(nvml).update(changes)
    return nvml


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Installs a driver's library and a torch; returns the GPU that is found."""

    def machine(nvml: object = None, torch: str = "2.11.0", visible: str | None = None) -> Gpu | None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: not installed
        monkeypatch.setattr(importlib.metadata, "version", lambda name: torch)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return first_gpu()

    return machine


def test_first_gpu(machine) -> None:
    assert machine(fake_nvml()) == Gpu(name="NVIDIA H200", architecture="sm_90", memory_bytes=140, free_bytes=100,
                                       driver="580.159.03")


@pytest.mark.parametrize(("visible", "name"), [
    ("0", "NVIDIA H200"), ("1,0", "NVIDIA L40S"), ("GPU-8f1c", "NVIDIA L40S"), ("", None), ("-1", None), ("7", None),
])
def test_visible_devices(machine, visible: str, name: str | None) -> None:
    gpu = machine(fake_nvml(), visible=visible)
    assert (gpu and gpu.name) == name


def fail() -> None:
    raise NVMLError("driver not loaded")


@pytest.mark.parametrize("options", [
    {"nvml": None}, {"nvml": fake_nvml(nvmlInit=fail)}, {"nvml": fake_nvml(nvmlDeviceGetCount=fail)},
    {"nvml": fake_nvml(nvmlDeviceGetCount=lambda: 0)}, {"nvml": fake_nvml(), "torch": "2.13.0+cpu"},
])
def test_machines_without_a_usable_gpu(machine, options: dict) -> None:
    assert machine(**options) is None
