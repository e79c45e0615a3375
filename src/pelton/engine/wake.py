"""Wakes the GPU's driver up while Python still imports torch: both take a good part of a second, and neither needs the
other. Knows no tensors."""

from __future__ import annotations

import ctypes
import threading

DRIVER = "libcuda.so.1"


def wake_driver() -> threading.Thread:
    """Begins to make the first GPU's context, the one that torch will find and use, on a thread of its own. Without a
    driver or a GPU nothing happens: who needs one says so later."""
    thread = threading.Thread(target=_make_context, name="wake-driver", daemon=True)
    thread.start()
    return thread


def _make_context() -> bool:
    """Whether there is a context now. It is kept until the process ends."""
    try:
        driver = ctypes.CDLL(DRIVER)  # calls into it let other threads run
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    return (driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
            and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0)
