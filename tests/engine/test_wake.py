"""The driver is woken beside the import of torch, and a machine without one is none the worse."""

import ctypes

import pytest

from pelton.engine import wake


class Driver:
    """Notes what is called; `failing` is a call that returns an error."""

    def __init__(self, failing=None):
        self.calls = []
        for name in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"):
            setattr(self, name, lambda *args, name=name: self.calls.append(name) or 100 * (name == failing))


def test_the_first_gpus_context_is_made(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    wake.wake_driver().join(10)
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_without_a_gpu_is_left_alone(monkeypatch, failing):
    driver = Driver(failing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert not wake._make_context()
    assert driver.calls[-1] == failing


def test_no_driver_is_no_error(monkeypatch):
    monkeypatch.setattr(wake, "DRIVER", "libno-such-driver.so.1")
    assert not wake._make_context()
