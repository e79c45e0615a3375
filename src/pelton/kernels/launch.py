"""Launches of Triton kernels with little Python: what Triton works out anew for every launch is remembered here.

`kernel[grid](...)` binds names, describes every argument and option, and makes a string of it all to find the compiled
kernel, which takes a multiple of the launch itself. Here the first launch of each kind goes that way; those alike pass
addresses and numbers straight to the compiled kernel. Two launches are alike if they agree in the device, in constants
and options, and in all that Triton compiles for: types, whether addresses and numbers are multiples of 16, ones, None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.runtime import JITFunction, driver

_INT32 = range(-2**31, 2**31)
_kernels: dict[int, _Kernel] = {}  # by id: a JITFunction's own hash is that of its source


class _Kernel:
    """What is known of one kernel.

    Attributes:
        are_specialized: per argument, whether it is compiled for what is known of its value.
        ready: by what launches are told apart: the compiled kernel's launcher, its first arguments, its constants.
    """

    def __init__(self, kernel: JITFunction):
        self.kernel = kernel  # so that its id is not used again
        params = [param for param in kernel.params if not param.is_constexpr]
        self.constants = kernel.params[len(params):]
        assert all(param.is_constexpr for param in self.constants), f"{kernel.__name__}: constants come last"
        assert not any(param.annotation_type for param in params), f"{kernel.__name__}: types are those of the values"
        self.are_specialized = [not param.do_not_specialize for param in params]
        self.ready: dict[tuple, tuple] = {}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """`kernel[grid](*args, **constants)` on the current stream.

    Args:
        kernel: a Triton or Gluon function whose constants come after all its other parameters.
        grid: one to three numbers.
        args: every parameter that is no constant, in order: device tensors, numbers, None, tensor descriptors.
        constants: the constants by name, and options (num_warps, num_stages, launch_pdl, ...).
    """
    known = _kernels.get(id(kernel))
    if known is None:
        if not isinstance(kernel, JITFunction):  # interpreted
            kernel[grid](*args, **constants)
            return
        known = _kernels[id(kernel)] = _Kernel(kernel)
    device = driver.active.get_current_device()
    key, values = describe(args, known.are_specialized)
    key = (*key, device, *constants, *constants.values())
    found = known.ready.get(key)
    if found is None:
        compiled = kernel[grid](*args, **constants)
        in_order = [constants.get(param.name, param.default) for param in known.constants]
        known.ready[key] = (compiled.run, compiled.function, compiled.packed_metadata, in_order)
        return
    run, function, metadata, in_order = found
    size_x, size_y, size_z = (*grid, 1, 1)[:3]
    run(size_x, size_y, size_z, driver.active.get_current_stream(device), function, metadata, None, None, None,
        *values, *in_order)


def describe(args: tuple[Any, ...], are_specialized: list[bool]) -> tuple[list[Any], list[Any]]:
    """What a kernel is compiled for, and the arguments as a compiled kernel takes them: tensors by their addresses.

    Raises:
        TypeError: an argument is of a kind that is not known here.
    """
    assert len(args) == len(are_specialized), "every parameter that is no constant is given by its place"
    key: list[Any] = []
    values: list[Any] = []
    add, pass_on = key.append, values.append
    for arg, is_specialized in zip(args, are_specialized):
        kind = type(arg)
        if kind is Tensor:
            address = arg.data_ptr()
            pass_on(address)
            add(arg.dtype)
            add(is_specialized and address % 16 == 0)
            continue
        pass_on(arg)
        if kind is int:
            special = 0 if not is_specialized else 16 if arg % 16 == 0 else int(arg == 1)
            add(special if arg in _INT32 else ("wide", special, arg >= 2**63))
        elif arg is None or kind is float or kind is bool:
            add(kind)
        elif hasattr(arg, "block_shape"):  # a tensor descriptor, Triton's or Gluon's
            key += (kind, arg.base.dtype, *arg.block_shape, getattr(arg, "layout", None))
        else:
            raise TypeError(f"a kernel cannot be launched with {arg!r}")
    return key, values
