"""The launcher: launches are taken for alike only where Triton would run the same compiled kernel."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from helpers.triton_interpret import DEVICE

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime import JITFunction
from triton.runtime.jit import create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from pelton.kernels import integers
from pelton.kernels import launch as launcher


def plain(x, y, n, m, BLOCK: tl.constexpr, KIND: tl.constexpr = None):
    pass


def scale_kernel(x, out, size, factor, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + lanes, tl.load(x + lanes, mask=lanes < size) * factor, mask=lanes < size)


def draw_argument(draw: random.Random):
    kind = draw.randrange(7)
    if kind < 2:
        dtype = draw.choice([torch.float32, torch.bfloat16, torch.int32])
        return torch.zeros(64, dtype=dtype)[draw.choice([0, 0, 1, 4, 8]):]
    if kind < 4:
        return draw.choice([0, 1, 2, 3, 16, 17, 32, -1, -16, 2**31 - 1, 2**31, 2**31 + 16, 2**40, 2**63, 2**63 + 1])
    if kind == 4:
        return draw.choice([0.0, 1.0, 16.0, True, False, None])
    matrix = torch.zeros(64, 64, dtype=draw.choice([torch.float16, torch.bfloat16]))
    block = [draw.choice([16, 32]), draw.choice([32, 64])]
    if kind == 5:
        return TensorDescriptor.from_tensor(matrix, block)
    return GluonDescriptor.from_tensor(matrix, block, NVMMASharedLayout(draw.choice([32, 64]), 16, 2))


@pytest.mark.parametrize("unspecialized", [[], ["x", "n"], ["y", "m"]], ids=str)
def test_arguments_that_triton_tells_apart_are_told_apart(unspecialized):
    kernel = JITFunction(plain, do_not_specialize=unspecialized)
    bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    are_specialized = launcher._Kernel(kernel).are_specialized
    draw = random.Random(0)
    by_key = {}
    for _ in range(4000):
        args = [draw_argument(draw) for _ in are_specialized]
        key, values = launcher.describe(tuple(args), are_specialized)
        _, expected, _ = bind(*args, BLOCK=16)
        assert by_key.setdefault(tuple(key), expected) == expected
        assert values == [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args]
    assert len(by_key) > 500


class CountedKernel(JITFunction):
    """Compiles nothing: the first launch of each kind, and what is given to the compiled kernel after it."""

    def __init__(self, fn):
        super().__init__(fn)
        self.first, self.later = [], []

    def run(self, *args, grid, warmup, **kwargs):
        self.first.append((grid, args, kwargs))
        name = len(self.first)
        return SimpleNamespace(run=lambda *args: self.later.append((name, args)), function=f"code {name}",
                               packed_metadata="warps")


@pytest.fixture
def device(monkeypatch):
    state = SimpleNamespace(get_current_device=lambda: state.index, get_current_stream=lambda index: f"stream {index}",
                            index=0)
    monkeypatch.setattr(launcher, "driver", SimpleNamespace(active=state))
    return state


def test_later_launches_go_to_the_compiled_kernel(device):
    kernel = CountedKernel(plain)
    x = torch.zeros(64)
    args = x, None, 16, 0.5
    for _ in range(3):
        launcher.launch(kernel, (7, 2), *args, BLOCK=8, num_warps=4)
    assert kernel.first == [((7, 2), args, {"BLOCK": 8, "num_warps": 4})]
    expected = (7, 2, 1, "stream 0", "code 1", "warps", None, None, None, x.data_ptr(), None, 16, 0.5, 8, None)
    assert kernel.later == [(1, expected)] * 2


@pytest.mark.parametrize("change", [
    {"BLOCK": 16}, {"KIND": "other"}, {"num_warps": 8}, {"launch_pdl": True}, {"device": 1},
    {"args": (None, None, 16, 1)},
    {"args": (torch.zeros(64)[1:], None, 16, 0.5)}, {"args": (torch.zeros(64), None, 17, 0.5)},
], ids=lambda change: next(iter(change)))
def test_other_launches_do_not(device, change):
    kernel = CountedKernel(plain)
    args, constants = (torch.zeros(64), None, 16, 0.5), {"BLOCK": 8, "KIND": "one", "num_warps": 4}
    launcher.launch(kernel, (1,), *args, **constants)
    change = dict(change)
    device.index = change.pop("device", 0)
    other = change.pop("args", args)
    launcher.launch(kernel, (1,), *other, **constants | change)
    assert (len(kernel.first), kernel.later) == (2, [])
    device.index = 0
    launcher.launch(kernel, (1,), *args, **constants)
    assert (len(kernel.first), [name for name, _ in kernel.later]) == (2, [1])


def test_two_kernels_of_one_source_are_two(device):
    kernels = CountedKernel(plain), CountedKernel(plain)
    for kernel in kernels:
        launcher.launch(kernel, (1,), None, None, 1, 1, BLOCK=8)
    assert [len(kernel.first) for kernel in kernels] == [1, 1]


def test_what_is_not_known_is_refused(device):
    with pytest.raises(TypeError, match="cannot be launched with 'x'"):
        launcher.launch(CountedKernel(plain), (1,), None, None, "x", 1, BLOCK=8)


def test_results_are_those_of_a_launch_by_triton():
    kernel = triton.jit(scale_kernel)
    for size in (1, 16, 100, 100, 1000):
        x = torch.randn(size + 1, device=DEVICE)
        for at in (x[:size], x[1:], x[:size]):
            out = torch.full_like(at, torch.nan)
            launcher.launch(kernel, (triton.cdiv(size, 64),), at, out, size, 2.5, BLOCK=64)
            assert torch.equal(out, at * 2.5)


def test_integers_are_those_of_triton():
    for number in [*range(1, 300), 2**20 - 1, 2**20, 2**20 + 1]:
        assert integers.next_power_of_2(number) == triton.next_power_of_2(number)
        for divisor in (1, 2, 7, 64):
            assert integers.ceil_div(number, divisor) == triton.cdiv(number, divisor)
