"""Where the memory of one rank goes, in bytes: the ledger of an engine. Knows no tensors.

`plan` predicts it from the model's shape, `build` writes it as ledger.json, and a runner that has loaded its weights
replaces predictions by what it measured. The KV cache takes a share of what the other items leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelton import physics
from pelton.config import BuildConfig, KvCacheConfig, ModelConfig, from_dict, to_dict
from pelton.errors import CapacityError, ConfigError
from pelton.physics import GIB, MIB

DEFAULT_MAX_SEQ_LEN = 32768
COUNT_BYTES = 4
LOGIT_BYTES = 4
MAX_GRAPH_TOKENS = 512
"""Decode steps of up to this many rows are planned for as CUDA graphs."""
NUM_GRAPHS = 67
"""Of decode steps by padded rows (runner/graphs.py), and of short prompts by padded tokens (runner/prompt_graphs.py).
"""
KERNELS_PER_LAYER = 10
GRAPH_NODE_BYTES = 2048
"""Device memory of one kernel node: its parameters and launch descriptor, as the driver rounds them."""
LIBRARY_WORKSPACE_BYTES = 32 * MIB
"""What torch hands cuBLAS on Hopper (CUBLAS_WORKSPACE_CONFIG :4096:2:16:8 and more)."""
LINEAR_WORKSPACE_BYTES = 72 * MIB
"""Partial sums of the products of few rows, on a GPU of up to 140 multiprocessors (kernels/linear/workspace.py)."""
SAMPLING_CHUNK_TOKENS = 4096
"""A row is drawn for in chunks of so many logits (kernels/sampling/triton_rows.py)."""
SAMPLING_CHUNK_BYTES = 1056
"""Of a chunk: 7 statistics, its best place, and the largest logit and the place in a list of each of its 128 lanes."""
MAX_ATTENTION_SPLITS = 16
"""Parts a sequence's keys are cut into for decode; each leaves a partial sum in float32."""
GPU_RESERVE_BYTES = 3 * GIB // 2
"""Of the memory nvidia-smi tells: on an H200 the driver holds 0.6 GiB before any program runs, a CUDA context with
cuBLAS 0.7 (both measured); the rest is for compiled kernels and the allocator's rounding."""
CPU_RESERVE_SHARE = 0.25
"""Of main memory: the system, other processes, and the page cache that the weights are read through."""

_ITEMS = ("weights_bytes", "activations_bytes", "graphs_bytes", "workspace_bytes", "sampling_state_bytes",
          "reserve_bytes")
_DERIVED = ("kv_blocks_bytes", "kv_tokens", "free_bytes")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Bytes on one rank. Everything but `kv_blocks_bytes` is needed before the first block can be given out."""

    memory_bytes: int
    """All memory of the device."""
    weights_bytes: int
    activations_bytes: int
    """Largest set of tensors alive at once in a step of max_num_tokens, and the logits of max_batch_size rows."""
    graphs_bytes: int
    """Captured CUDA graphs; 0 on a CPU."""
    workspace_bytes: int
    """Scratch of matrix products, of split attention and of sampling."""
    sampling_state_bytes: int
    """Token counts of every slot, dense over the vocabulary, for penalties."""
    reserve_bytes: int
    """Not ours to give: driver, context, fragmentation."""
    block_bytes: int
    """One block of the KV cache, all layers."""
    tokens_per_block: int
    num_blocks: int
    """Blocks of the KV cache; 0 or fewer than one sequence needs: it does not fit."""

    @property
    def kv_blocks_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.tokens_per_block

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        return sum(getattr(self, name) for name in _ITEMS)

    @property
    def free_bytes(self) -> int:
        """What nothing is planned for; negative: that much is missing."""
        return self.memory_bytes - self.fixed_bytes - self.kv_blocks_bytes

    def num_sequences(self, num_tokens: int) -> int:
        """Sequences of `num_tokens` tokens each that the KV cache holds at once, in whole blocks."""
        return self.num_blocks // math.ceil(num_tokens / self.tokens_per_block)

    def describe(self) -> str:
        """The items in GiB, in one line."""
        items = {"weights": self.weights_bytes, "activations": self.activations_bytes, "graphs": self.graphs_bytes,
                 "workspace": self.workspace_bytes, "sampling state": self.sampling_state_bytes,
                 "reserve": self.reserve_bytes, "KV blocks": self.kv_blocks_bytes}
        return ", ".join(f"{name} {_gib(num_bytes)}" for name, num_bytes in items.items())

    def to_lines(self) -> list[str]:
        """The items in bytes, one a line."""
        items = {name.removesuffix("_bytes").replace("_", " "): getattr(self, name)
                 for name in (*_ITEMS, "kv_blocks_bytes", "free_bytes")}
        items["unused"] = items.pop("free")
        return [f"{name:<15}{num_bytes:>18,}" for name, num_bytes in items.items()]

    def require_fit(self, num_tokens: int, would_fit: Callable[[], Sequence[str]] = tuple) -> None:
        """Raises CapacityError unless the KV cache holds one sequence of `num_tokens` tokens.

        Args:
            would_fit: asked then for changes that would each alone make it fit.
        """
        if self.num_sequences(num_tokens) < 1:
            mends = would_fit()
            mend = f"what would fit, each alone: {', '.join(mends)}" if mends else \
                "lower max_seq_len, max_batch_size or max_num_tokens, or use a larger device"
            raise CapacityError(
                f"memory: {_gib(self.fixed_bytes)} of {_gib(self.memory_bytes)} GiB go to weights and the rest "
                f"({self.describe()}), which leaves {max(self.num_blocks, 0)} KV blocks of {self.tokens_per_block} "
                f"tokens; one sequence of {num_tokens} tokens needs {math.ceil(num_tokens / self.tokens_per_block)}; "
                f"{mend}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, derived sizes included for the reader."""
        return {**to_dict(self), **{name: getattr(self, name) for name in _DERIVED}}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, where: str = "") -> Ledger:
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: an unknown key, a missing one or a wrong type.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{where + ': ' if where else ''}expected an object, got {type(data).__name__}")
        return from_dict(cls, {key: value for key, value in data.items() if key not in _DERIVED}, where=where)


def resolve_max_seq_len(model: ModelConfig, build: BuildConfig) -> int:
    """Prompt plus output tokens of one sequence: as asked for, else the model's context, at most 32,768."""
    return build.max_seq_len or min(model.context_len, DEFAULT_MAX_SEQ_LEN)


def predict_ledger(model: ModelConfig, build: BuildConfig, hardware: physics.Hardware, *, weight_dtype: str = "auto",
                   kv_cache_dtype: str = "auto", tp_size: int = 1, kv: KvCacheConfig | None = None) -> Ledger:
    """The ledger of one of `tp_size` ranks, from shapes alone.

    Weights, blocks, logits and counts are exact; activations are what the decoder keeps alive at its widest place;
    graphs, workspace and reserve are estimates.

    Raises:
        ConfigError: an unknown weight or cache type.
    """
    kv = kv or KvCacheConfig()
    is_gpu = hardware.architecture != "cpu"
    weights = physics.weight_format(model, weight_dtype)
    fixed = {
        "weights_bytes": physics.weight_memory_bytes(model, weights, tp_size=tp_size),
        "activations_bytes": activation_bytes(model, build, element_bytes=weights.other_bytes, tp_size=tp_size),
        "graphs_bytes": graph_bytes(model) if is_gpu else 0,
        "workspace_bytes": gpu_workspace_bytes(model, build, tp_size) if is_gpu else 0,
        "sampling_state_bytes": sampling_state_bytes(model, build),
        "reserve_bytes": GPU_RESERVE_BYTES if is_gpu else int(hardware.memory_bytes * CPU_RESERVE_SHARE),
    }
    block_bytes = build.tokens_per_block * physics.kv_bytes_per_token(model, kv_cache_dtype, tp_size=tp_size)
    left = hardware.memory_bytes - sum(fixed.values())
    num_blocks = max(0, int(left * kv.free_memory_fraction)) // block_bytes
    if kv.max_blocks is not None:
        num_blocks = min(num_blocks, kv.max_blocks)
    return Ledger(memory_bytes=hardware.memory_bytes, block_bytes=block_bytes, num_blocks=num_blocks,
                  tokens_per_block=build.tokens_per_block, **fixed)


def what_would_fit(model: ModelConfig, build: BuildConfig, ledger_of: Callable[..., Ledger],
                   choices: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any, Ledger]]:
    """Single changes after which one sequence of max_seq_len fits: (name, value, ledger), one per name.

    Args:
        ledger_of: the ledger with one argument changed.
        choices: values of each argument, gentlest first.
    """
    found = []
    for name, values in choices.items():
        for value in values:
            ledger = ledger_of(**{name: value})
            max_seq_len = value if name == "max_seq_len" else resolve_max_seq_len(model, build)
            if ledger.num_sequences(max_seq_len) >= 1:
                found.append((name, value, ledger))
                break
    return found


def in_words(changes: list[tuple[str, Any, Ledger]]) -> list[str]:
    """Changes that would make a model fit, as `what_would_fit` found them."""
    return [f"weights in {value} ({_gib(ledger.weights_bytes)} GiB)" if name == "weight_dtype" else
            f"{name} {value} ({value} GPUs)" if name == "tp_size" else f"{name} {value}"
            for name, value, ledger in changes]


def fit_choices(model: ModelConfig, build: BuildConfig) -> dict[str, list[Any]]:
    """What may be changed to make a model fit on a GPU, see `what_would_fit`; tp_size divides the KV heads."""
    max_seq_len = resolve_max_seq_len(model, build)
    return {
        "max_batch_size": [size for size in (64, 16) if size < build.max_batch_size],
        "max_num_tokens": [size for size in (2048, 512) if build.max_batch_size <= size < build.max_num_tokens],
        "weight_dtype": ["fp8", "int4-wo"],
        "tp_size": [size for size in (2, 4, 8) if model.num_kv_heads % size == 0],
        "max_seq_len": [length for length in (16384, 8192, 4096, 2048, 1024) if length < max_seq_len],
    }


def activation_bytes(model: ModelConfig, build: BuildConfig, *, element_bytes: int, tp_size: int = 1) -> int:
    """Bytes alive at the widest place of a step of max_num_tokens, plus the float32 logits of the sampled rows.

    Beside the residual stream and its normed copy, either qkv and the attention's output or gate-up and their product.
    """
    qkv = model.q_size + 2 * max(model.kv_size, tp_size * model.head_dim) + model.q_size
    widest = max(qkv, 3 * model.intermediate_size) / tp_size
    step = build.max_num_tokens * (2 * model.hidden_size + widest) * element_bytes
    logits = min(build.max_batch_size, build.max_num_tokens) * model.vocab_size * LOGIT_BYTES
    return math.ceil(step + logits)


def sampling_state_bytes(model: ModelConfig, build: BuildConfig) -> int:
    """One int32 count per slot and vocabulary entry: 1,024 slots of a vocabulary of 152,064 take 623 MB."""
    return build.max_batch_size * model.vocab_size * COUNT_BYTES


def graph_bytes(model: ModelConfig) -> int:
    """What the driver keeps of the captured graphs; their tensors count as activations."""
    return NUM_GRAPHS * model.num_layers * KERNELS_PER_LAYER * GRAPH_NODE_BYTES


def gpu_workspace_bytes(model: ModelConfig, build: BuildConfig, tp_size: int = 1, *,
                        linear_bytes: int = LINEAR_WORKSPACE_BYTES) -> int:
    """Scratch of matrix products, the library's and ours, of split attention, and of sampling.

    Args:
        linear_bytes: of our products on the GPU that is meant, if it is known.
    """
    heads = math.ceil(model.num_heads / tp_size)
    rows = min(build.max_batch_size, MAX_GRAPH_TOKENS)
    attention = rows * heads * MAX_ATTENTION_SPLITS * (model.head_dim + 2) * 4
    num_drawn = min(build.max_batch_size, build.max_num_tokens)
    return (LIBRARY_WORKSPACE_BYTES + linear_bytes + attention
            + sampling_scratch_bytes(num_drawn, model.vocab_size))


def sampling_scratch_bytes(num_rows: int, vocab_size: int) -> int:
    """What a draw for so many rows, some of which truncate, takes beside the logits (kernels/sampling/triton.py)."""
    num_chunks = -(-vocab_size // SAMPLING_CHUNK_TOKENS)
    window = 8192 if vocab_size <= 160_000 else 16384  # logits and places of those that may be kept
    return num_rows * (num_chunks * SAMPLING_CHUNK_BYTES + window * 8 + 44)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
