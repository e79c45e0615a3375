"""How many KV blocks a runner may have, decided from the ledger before anything is allocated.

On a GPU the cache takes `free_memory_fraction` of what weights and activations leave. A CPU shares its memory with
everything else that runs, so there it also takes no more than max_batch_size sequences of max_seq_len could use, and
no more than 4 GiB unless one sequence needs more. `max_blocks` takes the place of all of these.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pelton.config import DTYPE_BYTES, BuildConfig, Dtype, ExecutorConfig, KvCacheConfig, ModelConfig
from pelton.errors import CapacityError
from pelton.host import Gpu, memory_bytes, read_text
from pelton.ledger import (
    LINEAR_WORKSPACE_BYTES,
    Ledger,
    activation_bytes,
    fit_choices,
    gpu_workspace_bytes,
    graph_bytes,
    in_words,
    sampling_state_bytes,
    what_would_fit,
)
from pelton.manifest import Limits, Manifest, weights_name
from pelton.physics import GIB, kv_bytes_per_token, weight_format, weight_memory_bytes
from pelton.runner.limits import narrow

if TYPE_CHECKING:
    import torch

CPU_CACHE_BYTES = 4 * GIB
GPU_GROWTH_BYTES = GIB
"""What comes on top once steps run: holes that the allocator leaves between steps of different sizes (0.4 GiB measured
on an H200 with an 8B model), and code and queues that the driver loads (0.3 GiB)."""
CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context with its libraries takes of the memory that is free before it is made (0.5 GiB on an H200)."""
_CGROUPS = (  # limit, use, and the statistics that tell how much of the use is page cache
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)


def available_bytes(device: torch.device) -> tuple[int, int]:
    """(all memory, what of it could be allocated now), in bytes."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return total, free
    total = memory_bytes()
    found = re.search(r"^MemAvailable:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    available = int(found[1]) * 1024 if found else total
    for limit_path, use_path, stat_path in _CGROUPS:
        limit, use = read_text(limit_path).strip(), read_text(use_path).strip()
        if limit.isdigit() and use.isdigit():
            cached = re.search(r"^(?:inactive_file|total_inactive_file) (\d+)$", read_text(stat_path), re.MULTILINE)
            available = min(available, int(limit) - int(use) + (int(cached[1]) if cached else 0))
    return total, max(0, min(available, total))


def plan_memory(model: ModelConfig, limits: Limits, kv: KvCacheConfig, *, weights_bytes: int, dtype: Dtype,
                kv_dtype: Dtype, device: torch.device) -> Ledger:
    """The ledger of a runner on this device now, with its number of KV blocks.

    Args:
        weights_bytes: of all tensors in their file; not yet loaded.

    Raises:
        CapacityError: the weights, one sequence of max_seq_len or the blocks asked for do not fit; the text holds the
            ledger and what would fit.
    """
    memory = available_bytes(device)
    if device.type == "cuda":
        return _plan(model, limits, kv, memory, is_gpu=True, weights_bytes=weights_bytes, dtype=dtype,
                     kv_dtype=kv_dtype, linear_bytes=_linear_workspace_bytes(device))
    return _plan(model, limits, kv, memory, is_gpu=False, weights_bytes=_resident_bytes(model, dtype), dtype=dtype,
                 kv_dtype=kv_dtype)


def refuse_too_large(manifest: Manifest, config: ExecutorConfig, gpu: Gpu) -> None:
    """Refuses an engine that a GPU has no room for, before torch is imported and anything is loaded.

    Raises:
        CapacityError: as `plan_memory`. ConfigError: the configuration asks for more than was built.
    """
    memory = gpu.memory_bytes, gpu.free_bytes - CONTEXT_BYTES
    _plan(manifest.model, narrow(manifest.limits, config), config.kv_cache_config, memory, is_gpu=True,
          weights_bytes=manifest.files[weights_name(0)].size_bytes, dtype=manifest.dtype,
          kv_dtype=manifest.kv_cache_dtype)


def _plan(model: ModelConfig, limits: Limits, kv: KvCacheConfig, memory: tuple[int, int], *, is_gpu: bool,
          weights_bytes: int, dtype: Dtype, kv_dtype: Dtype, linear_bytes: int = LINEAR_WORKSPACE_BYTES) -> Ledger:
    """The ledger within (all memory, what of it is free), in bytes."""
    total, available = memory
    sizes = BuildConfig(max_batch_size=limits.max_batch_size, max_num_tokens=limits.max_num_tokens,
                        max_seq_len=limits.max_seq_len, tokens_per_block=limits.tokens_per_block)

    def ledger_of(*, weight_dtype: str | None = None, tp_size: int = 1, **change: Any) -> Ledger:
        """With other limits, or the weights in another type or split."""
        build = replace(sizes, **change)
        weights = weights_bytes
        if weight_dtype is not None or tp_size > 1:
            weights = weight_memory_bytes(model, weight_format(model, weight_dtype or dtype), tp_size=tp_size)
        fixed = {
            "weights_bytes": weights,
            "activations_bytes": activation_bytes(model, build, element_bytes=int(DTYPE_BYTES[dtype]),
                                                  tp_size=tp_size),
            "graphs_bytes": graph_bytes(model) if is_gpu else 0,
            "workspace_bytes": gpu_workspace_bytes(model, build, tp_size, linear_bytes=linear_bytes) if is_gpu else 0,
            "sampling_state_bytes": sampling_state_bytes(model, build),
            "reserve_bytes": total - available + (GPU_GROWTH_BYTES if is_gpu else 0),
        }
        block_bytes = limits.tokens_per_block * kv_bytes_per_token(model, kv_dtype, tp_size=tp_size)
        left = total - sum(fixed.values())
        return Ledger(memory_bytes=total, block_bytes=block_bytes, tokens_per_block=limits.tokens_per_block,
                      num_blocks=_num_blocks(left, block_bytes, limits, kv, is_gpu=is_gpu), **fixed)

    ledger = ledger_of()
    if kv.max_blocks is None:
        ledger.require_fit(limits.max_seq_len,
                           lambda: in_words(what_would_fit(model, sizes, ledger_of, fit_choices(model, sizes)))
                           if is_gpu else ())
    elif ledger.free_bytes < 0:
        left = total - ledger.fixed_bytes
        raise CapacityError(f"kv_cache_config.max_blocks: {kv.max_blocks} blocks take "
                            f"{ledger.kv_blocks_bytes / GIB:.2f} GiB, and weights and activations leave "
                            f"{max(left, 0) / GIB:.2f} of the {available / GIB:.2f} GiB that are free; lower "
                            "max_blocks or leave it out")
    return ledger


def _resident_bytes(model: ModelConfig, dtype: Dtype) -> int:
    """What weights take up once a CPU's kernels hold them."""
    import torch

    from pelton.models.decoder import resident_bytes

    return resident_bytes(model, getattr(torch, dtype), implementation="cpu")


def _linear_workspace_bytes(device: torch.device) -> int:
    from pelton.kernels.gpu_features import gpu_features
    from pelton.kernels.linear.workspace import workspace_bytes

    return workspace_bytes(gpu_features(device).num_processors)


def _num_blocks(left_bytes: int, block_bytes: int, limits: Limits, kv: KvCacheConfig, *, is_gpu: bool) -> int:
    if kv.max_blocks is not None:
        return kv.max_blocks
    num_blocks = int(max(left_bytes, 0) * kv.free_memory_fraction) // block_bytes
    if not is_gpu:
        per_sequence = -(-limits.max_seq_len // limits.tokens_per_block)
        num_blocks = min(num_blocks, limits.max_batch_size * per_sequence,
                         max(CPU_CACHE_BYTES // block_bytes, per_sequence))
    return num_blocks
