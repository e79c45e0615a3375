"""How many KV blocks a runner may have, decided from the ledger before anything is allocated.

On a GPU the cache takes `free_memory_fraction` of what weights and activations leave. A CPU shares its memory with
everything else that runs, so there it also takes no more than max_batch_size sequences of max_seq_len could use, and
no more than 4 GiB unless one sequence needs more. `max_blocks` takes the place of all of these.
"""

from __future__ import annotations

import re

import torch

from pelton.config import DTYPE_BYTES, BuildConfig, Dtype, KvCacheConfig, ModelConfig
from pelton.errors import CapacityError
from pelton.host import memory_bytes, read_text
from pelton.kernels.cpu_features import native_dtype
from pelton.ledger import Ledger, activation_bytes, gpu_workspace_bytes, graph_bytes, sampling_state_bytes
from pelton.manifest import Limits
from pelton.physics import GIB, kv_bytes_per_token

CPU_CACHE_BYTES = 4 * GIB
GPU_GROWTH_BYTES = GIB
"""What comes on top once steps run: holes that the allocator leaves between steps of different sizes (0.4 GiB measured
on an H200 with an 8B model), and code and queues that the driver loads (0.3 GiB)."""
_CGROUPS = (  # limit, use, and the statistics that tell how much of the use is page cache
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)


def available_bytes(device: torch.device) -> tuple[int, int]:
    """(all memory, what of it could be allocated now), in bytes."""
    if device.type == "cuda":
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
        CapacityError: the weights, one sequence of max_seq_len or the blocks asked for do not fit.
    """
    total, available = available_bytes(device)
    sizes = BuildConfig(max_batch_size=limits.max_batch_size, max_num_tokens=limits.max_num_tokens,
                        max_seq_len=limits.max_seq_len, tokens_per_block=limits.tokens_per_block)
    is_gpu = device.type == "cuda"
    fixed = {
        "weights_bytes": _resident_bytes(model, weights_bytes, dtype, device),
        "activations_bytes": activation_bytes(model, sizes, element_bytes=int(DTYPE_BYTES[dtype])),
        "graphs_bytes": graph_bytes(model) if is_gpu else 0,
        "workspace_bytes": gpu_workspace_bytes(model, sizes) if is_gpu else 0,
        "sampling_state_bytes": sampling_state_bytes(model, sizes),
        "reserve_bytes": total - available + (GPU_GROWTH_BYTES if is_gpu else 0),
    }
    block_bytes = limits.tokens_per_block * kv_bytes_per_token(model, kv_dtype)
    left = total - sum(fixed.values())
    ledger = Ledger(memory_bytes=total, block_bytes=block_bytes, tokens_per_block=limits.tokens_per_block,
                    num_blocks=_num_blocks(left, block_bytes, limits, kv, device), **fixed)
    if kv.max_blocks is None:
        ledger.require_fit(limits.max_seq_len)
    elif ledger.free_bytes < 0:
        raise CapacityError(f"kv_cache_config.max_blocks: {kv.max_blocks} blocks take "
                            f"{ledger.kv_blocks_bytes / GIB:.2f} GiB, and weights and activations leave "
                            f"{max(left, 0) / GIB:.2f} of the {available / GIB:.2f} GiB that are free; lower "
                            "max_blocks or leave it out")
    return ledger


def _resident_bytes(model: ModelConfig, file_bytes: int, dtype: Dtype, device: torch.device) -> int:
    """What weights take up once kernels hold them: a CPU widens types it cannot multiply, and packs a tied head."""
    if device.type != "cpu":
        return file_bytes
    native_bytes = native_dtype(getattr(torch, dtype)).itemsize
    tied_head = model.vocab_size * model.hidden_size * native_bytes if model.tie_word_embeddings else 0
    return int(file_bytes * native_bytes / DTYPE_BYTES[dtype]) + tied_head


def _num_blocks(left_bytes: int, block_bytes: int, limits: Limits, kv: KvCacheConfig, device: torch.device) -> int:
    if kv.max_blocks is not None:
        return kv.max_blocks
    num_blocks = int(max(left_bytes, 0) * kv.free_memory_fraction) // block_bytes
    if device.type == "cpu":
        per_sequence = -(-limits.max_seq_len // limits.tokens_per_block)
        num_blocks = min(num_blocks, limits.max_batch_size * per_sequence,
                         max(CPU_CACHE_BYTES // block_bytes, per_sequence))
    return num_blocks
