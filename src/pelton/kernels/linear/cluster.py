"""Products of 17 to 256 rows on Hopper, in CUDA C++: tiles of any width, clusters that add up sums (cluster.cu).

Triton's tiles are powers of two, which seldom go evenly into 132 multiprocessors. The kernel is compiled at run time by
NVRTC and launched by the driver's bindings, both of which torch for CUDA brings along, and kept in Triton's cache,
hence in the engine directory, like all other kernels.
"""

from __future__ import annotations

import ctypes
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelton.hashing import digest
from pelton.kernels.integers import ceil_div
from pelton.kernels.linear.prologue import Norm

_SOURCE = Path(__file__).with_suffix(".cu")
STEP = 64
"""Elements along K of one step: 128 bytes, what the copy engine swizzles."""
_ACTIVATIONS = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3}
_NUM_THREADS = 288
_MULTIPROCESSOR_BYTES = 227 << 10
_BLOCK_BYTES = 1 << 10
"""Shared memory that the driver takes of every block."""
_MAX_SMALL_TILE = 128 * 128
"""Outputs of a block of which two have room in a multiprocessor's registers."""
MAX_NORM_ROWS = 64
"""Input rows of the largest block that takes the input's norm with it."""
NUM_MULTIPROCESSORS = 132
"""Of the H100 and H200 (SXM)."""


@dataclass(frozen=True)
class ClusterConfig:
    """How cluster.cu's kernel is cut."""

    x_rows: int = 64
    """Input rows of a block: 8, 16, 32, 64, 128 or 256."""
    w_rows: int = 128
    """Weight rows of a block: a multiple of 8, of 16 for up to 64 input rows and for gated products; at most 256."""
    num_stages: int = 4
    """Steps of the weight in shared memory, which are asked for before the kernel before has ended."""
    num_splits: int = 1
    """Blocks along K, whose sums are added up; 1 for gated products."""
    x_stages: int = 0
    """Steps of the input in shared memory; 0: as many as of the weight."""

    @property
    def group_columns(self) -> int:
        """Weight rows of a warpgroup: the two share them where there are few input rows."""
        return self.w_rows // 2 if self.x_rows <= 64 else self.w_rows

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block, with room to align it and for rows that the tensor cores only seem to
        read."""
        ring = STEP * 2 * (self.num_stages * self.w_rows + (self.x_stages or self.num_stages) * (self.x_rows + 1))
        sums = self.x_rows * (self.w_rows + 32) * 4
        return 1024 + max(ring + max(0, 64 - self.x_rows) * STEP * 2, sums)

    @property
    def blocks_per_sm(self) -> int:
        """How many blocks a multiprocessor is to hold: two where shared memory and registers are enough."""
        fits = 2 * (self.shared_bytes + _BLOCK_BYTES) <= _MULTIPROCESSOR_BYTES
        return 2 if fits and self.x_rows * self.w_rows <= _MAX_SMALL_TILE else 1


def fitting(num_weight_rows: int, x_rows: int, *, num_splits: int = 1, blocks_per_sm: int = 1,
            max_stages: int = 12, x_stages: int = 0) -> ClusterConfig | None:
    """Tiles as wide as gives every multiprocessor so many blocks, at once or, if they are too large, in turn.

    Args:
        num_weight_rows: N of the weight [N, K].
        x_rows: input rows of a block.
        max_stages: a shorter ring leaves room for blocks of the next kernel.
        x_stages: of the input; 0 makes both rings of one length.

    Returns:
        None where such tiles would be wider than a block can have.
    """
    width = 16 * ceil_div(num_weight_rows * num_splits, 16 * blocks_per_sm * NUM_MULTIPROCESSORS)
    if width > 256 or x_rows * width > 256 * 128:
        return None
    num_at_once = blocks_per_sm if x_rows * width <= _MAX_SMALL_TILE else 1
    room = _MULTIPROCESSOR_BYTES // num_at_once - _BLOCK_BYTES - 1024 - max(0, 64 - x_rows) * STEP * 2
    room //= STEP * 2
    num_stages = (room - x_stages * (x_rows + 1)) // width if x_stages else room // (width + x_rows + 1)
    config = ClusterConfig(x_rows, width, min(max_stages, num_stages), num_splits, x_stages)
    return config if config.shared_bytes <= _MULTIPROCESSOR_BYTES else None


@dataclass(frozen=True)
class Variant:
    """What the kernel is compiled for."""

    config: ClusterConfig
    act: str | None
    has_bias: bool
    has_residual: bool
    has_norm: bool
    out_float: bool
    is_half: bool

    def source(self) -> str:
        """The kernel's source behind its constants."""
        config = self.config
        constants = {"X_ROWS": config.x_rows, "W_ROWS": config.w_rows, "GROUP_COLUMNS": config.group_columns,
                     "NUM_STAGES": config.num_stages, "X_STAGES": config.x_stages or config.num_stages,
                     "NUM_SPLITS": config.num_splits, "ACT": _ACTIVATIONS[self.act], "HAS_BIAS": int(self.has_bias),
                     "HAS_RESIDUAL": int(self.has_residual), "HAS_NORM": int(self.has_norm),
                     "OUT_FLOAT": int(self.out_float), "IS_HALF": int(self.is_half),
                     "MIN_BLOCKS": config.blocks_per_sm}
        lines = [f"#define {name} {value}" for name, value in constants.items()]
        kind = "f16" if self.is_half else "bf16"
        return "\n".join([*lines, _wgmma(config.group_columns, kind), _SOURCE.read_text()])


def _wgmma(num_columns: int, kind: str) -> str:
    """The functions of a warpgroup's product of 64 x `num_columns` x 16, with as many operands as it takes: the left
    matrix in shared memory, or each thread's eight elements of it in registers."""
    num = num_columns // 2
    sums = ", ".join(f"%{i}" for i in range(num))
    outputs = ", ".join(f'"+f"(acc[{i}])' for i in range(num))
    registers = ", ".join(f"%{num + i}" for i in range(4))

    def function(left: str, inputs: str, operand: str, right: int, transposes: str) -> str:
        return f"""
__device__ __forceinline__ void wgmma(float (&acc)[{num}], {left}, unsigned long long b, int keeps) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{right + 1}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{num_columns}k16.f32.{kind}.{kind} {{{sums}}}, "
               "{operand}, %{right}, p, 1, 1, {transposes};\\n}}"
               : {outputs} : {inputs}, "l"(b), "r"(keeps));
}}"""

    return (function("unsigned long long a", '"l"(a)', f"%{num}", num + 1, "0, 0")
            + function("const unsigned (&a)[4]", '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])', f"{{{registers}}}",
                       num + 4, "0"))


_NO_MAP = (ctypes.c_uint64 * 16)()


class _Kernel:
    """A variant, loaded on the current device."""

    def __init__(self, variant: Variant):
        self._config = variant.config
        image = _compiled(variant)
        module = _checked(_driver().cuModuleLoadData(image))
        self._function = _checked(_driver().cuModuleGetFunction(module, b"cluster_kernel"))
        attribute = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(_driver().cuFuncSetAttribute(self._function, attribute, variant.config.shared_bytes))
        self._launches: dict[tuple[int, int], Any] = {}

    def launch(self, num_tiles: int, num_rows: int, stream: int, *args: Any) -> None:
        """Runs with arguments as ctypes objects."""
        config = self._config
        grid = num_tiles, ceil_div(num_rows, config.x_rows)
        if grid not in self._launches:
            self._launches[grid] = _launch_config(config, grid)
        launch = self._launches[grid]
        launch.hStream = stream
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
        _checked(_driver().cuLaunchKernelEx(launch, self._function, ctypes.addressof(pointers), 0))


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, act: str | None,
           residual: Tensor | None, out: Tensor, config: ClusterConfig) -> None:
    """Runs the product of x [M, K], its rows 16-byte aligned, on the current stream; `out` may be `residual`. The
    norm's weight is of x's type.

    Raises:
        RuntimeError: the driver or the compiler refused.
    """
    from triton.runtime import driver as triton_driver

    num_rows, k_size = x.shape
    num_outputs = out.shape[1]
    device, is_half = x.device.index, x.dtype == torch.float16
    kernel = _kernel(Variant(config, act, bias is not None, residual is not None, norm is not None,
                             out.dtype == torch.float32, is_half), device)
    tile_outputs = config.w_rows // (2 if act is not None else 1)
    w_map = _weight_map(weight.data_ptr(), *weight.shape, act is not None, config.w_rows, is_half)
    num_copied = min(num_rows, config.x_rows)
    x_map = _matrix_map(x.data_ptr(), num_rows, k_size, num_copied, is_half)
    norm_map = _NO_MAP if norm is None else _vector_map(norm.weight.data_ptr(), k_size, is_half)
    kernel.launch(ceil_div(num_outputs, tile_outputs), num_rows, triton_driver.active.get_current_stream(device),
                  w_map, x_map, norm_map, _address(bias), _address(residual), _address(out), ctypes.c_int(num_rows),
                  ctypes.c_int(num_copied), ctypes.c_int(num_outputs), ctypes.c_int(ceil_div(k_size, STEP)),
                  ctypes.c_float(1 / k_size), ctypes.c_float(0.0 if norm is None else norm.eps))


@functools.cache
def is_available() -> bool:
    """Whether the bindings and libraries that compile and launch are installed."""
    try:
        from cuda.bindings import driver, nvrtc

        return nvrtc.nvrtcVersion()[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS and bool(driver.cuDriverGetVersion()[1])
    except (ImportError, RuntimeError):
        return False


def compile_variant(variant: Variant) -> bytes:
    """Machine code for compute capability 9.0, by NVRTC; needs no GPU.

    Raises:
        RuntimeError: with the compiler's log.
    """
    from cuda.bindings import nvrtc

    def checked(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"cluster.cu cannot be compiled: {result[0].name}")
        return result[1] if len(result) > 1 else None

    program = checked(nvrtc.nvrtcCreateProgram(variant.source().encode(), b"cluster.cu", 0, [], []))
    options = [b"--gpu-architecture=sm_90a", b"--std=c++17"]
    if nvrtc.nvrtcCompileProgram(program, len(options), options)[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"cluster.cu cannot be compiled: {log.decode(errors='replace')}")
    image = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, image))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return image


def _compiled(variant: Variant) -> bytes:
    """From Triton's cache, or compiled into it."""
    from triton.runtime.cache import get_cache_manager

    cache = get_cache_manager(digest(variant.source().encode()))
    group = cache.get_group("cluster_kernel.json")
    if group and "cluster_kernel.cubin" in group:
        return Path(group["cluster_kernel.cubin"]).read_bytes()
    image = compile_variant(variant)
    group = {"cluster_kernel.json": cache.put(json.dumps(asdict(variant)), "cluster_kernel.json", binary=False),
             "cluster_kernel.cubin": cache.put(image, "cluster_kernel.cubin")}
    cache.put_group("cluster_kernel.json", group)
    return image


@functools.cache
def _kernel(variant: Variant, device: int) -> _Kernel:
    return _Kernel(variant)


def _launch_config(config: ClusterConfig, grid: tuple[int, int]) -> Any:
    driver = _driver()
    cluster = driver.CUlaunchAttribute()
    cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size = cluster.value.clusterDim
    size.x, size.y, size.z = 1, 1, config.num_splits
    early = driver.CUlaunchAttribute()
    early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    early.value.programmaticStreamSerializationAllowed = 1
    launch = driver.CUlaunchConfig()
    launch.gridDimX, launch.gridDimY, launch.gridDimZ = *grid, config.num_splits
    launch.blockDimX, launch.blockDimY, launch.blockDimZ = _NUM_THREADS, 1, 1
    launch.sharedMemBytes = config.shared_bytes
    launch.attrs, launch.numAttrs = [cluster, early], 2
    return launch


@functools.lru_cache(maxsize=4096)
def _matrix_map(address: int, num_rows: int, num_columns: int, box_rows: int, is_half: bool) -> Any:
    """How the copy engine reads a row-major matrix: boxes of `box_rows` rows of one step; zeros past its end."""
    return _tensor_map(address, (num_columns, num_rows), (2 * num_columns,), (STEP, box_rows), is_half)


@functools.lru_cache(maxsize=4096)
def _weight_map(address: int, num_rows: int, num_columns: int, is_gated: bool, box_rows: int, is_half: bool) -> Any:
    """The same of a weight; of a gated one eight gates, then the eight rows that they gate, and so on."""
    if not is_gated:
        return _matrix_map(address, num_rows, num_columns, box_rows, is_half)
    row = 2 * num_columns
    return _tensor_map(address, (num_columns, 8, 2, num_rows // 16), (row, row * (num_rows // 2), row * 8),
                       (STEP, 8, 2, box_rows // 16), is_half)


@functools.lru_cache(maxsize=4096)
def _vector_map(address: int, size: int, is_half: bool) -> Any:
    """How the copy engine reads a vector, a step at a time; zeros past its end."""
    return _tensor_map(address, (size, 1), (2 * size,), (STEP, 1), is_half, is_swizzled=False)


def _tensor_map(address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...],
                is_half: bool, *, is_swizzled: bool = True) -> Any:
    """A CUtensorMap of 16-bit elements, as a ctypes object. sizes, box: innermost first; strides: in bytes."""
    driver = _driver()
    swizzles = driver.CUtensorMapSwizzle
    kinds = driver.CUtensorMapDataType
    kind = kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if is_half else kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    found = _checked(driver.cuTensorMapEncodeTiled(
        kind, len(sizes), address,
        [driver.cuuint64_t(size) for size in sizes], [driver.cuuint64_t(stride) for stride in strides],
        [driver.cuuint32_t(size) for size in box], [driver.cuuint32_t(1)] * len(sizes),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles.CU_TENSOR_MAP_SWIZZLE_128B if is_swizzled else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
    return (ctypes.c_uint64 * 16).from_buffer_copy(ctypes.string_at(found.getPtr(), 128))


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned.

    Raises:
        RuntimeError: it failed; with its name for the error.
    """
    if result[0] != _driver().CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA driver: {result[0].name}")
    return result[1] if len(result) > 1 else None
