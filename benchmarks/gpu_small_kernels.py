"""Norm, gated activation and rotary on one GPU, against the memory's bandwidth, at Llama-3.1-8B's shapes in bf16.

Few rows: the norm as a step has it, after a product of the library's with weights of its own per layer, 32 layers in
one CUDA graph; the same chain without the norm is taken off. Many rows: chains over buffers that together are larger
than the L2 cache. Microseconds a launch, beside those that its bytes take.

    python benchmarks/gpu_small_kernels.py [--output results/...json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import environment, print_json
from gpu_attention import LLAMA, READ_LIMIT, graph_seconds
from torch import Tensor

from pelton.kernels.activation import triton as activation
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.norm import triton as norm
from pelton.kernels.rotary import triton as rotary

HIDDEN, INNER = 4096, 14336
_LAYERS = 32
_BUFFERS = 4
_MANY = 8192
_EPS = 1e-5


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()


def norm_after_product(num_rows: int) -> dict[str, Any]:
    """Seconds that a norm with its residual adds to a chain of products."""
    weights = [bf16(HIDDEN, HIDDEN) for _ in range(_LAYERS)]
    x, residual, scales = bf16(num_rows, HIDDEN), bf16(num_rows, HIDDEN), bf16(HIDDEN)

    def step(has_norm: bool) -> None:
        for weight in weights:
            out = x @ weight
            if has_norm:
                norm.add_rms_norm(out, residual, scales, _EPS)

    seconds = (graph_seconds(lambda: step(True), 20) - graph_seconds(lambda: step(False), 20)) / _LAYERS
    return record(f"norm of {num_rows} rows after a product", seconds, 8 * num_rows * HIDDEN)


def many_norms(num_rows: int) -> dict[str, Any]:
    rows = [(bf16(num_rows, HIDDEN), bf16(num_rows, HIDDEN)) for _ in range(_BUFFERS)]
    scales = bf16(HIDDEN)
    return chain(f"norm of {num_rows} rows", rows, lambda x, residual: norm.add_rms_norm(x, residual, scales, _EPS),
                 8 * num_rows * HIDDEN)


def activations(num_rows: int) -> dict[str, Any]:
    rows = [(bf16(num_rows, 2 * INNER),) for _ in range(_BUFFERS)]
    return chain(f"activation of {num_rows} rows", rows, lambda x: activation.act_mul(x, "silu"),
                 6 * num_rows * INNER)


def rotations(num_rows: int) -> dict[str, Any]:
    """Reads q, k, v and angles; writes q and k in place, and k and v to the cache."""
    num_heads, num_kv_heads, head_dim = LLAMA
    num_blocks = -(-num_rows // 64)
    meta = AttentionMetadata.from_rows([0], [num_rows], [torch.randperm(num_blocks).tolist()], num_decodes=0,
                                       tokens_per_block=64, device="cuda")
    pool = bf16(num_blocks, _BUFFERS, 2, num_kv_heads, 64, head_dim)
    angles = rotary.prepare_angles(*torch.randn(2, num_rows, head_dim // 2, device="cuda"))
    rows = [(bf16(num_rows, (num_heads + 2 * num_kv_heads) * head_dim), layer) for layer in range(_BUFFERS)]
    num_bytes = num_rows * head_dim * (2 * (2 * num_heads + 5 * num_kv_heads) + 4)
    return chain(f"rotary of {num_rows} rows", rows, lambda qkv, layer: rotary.rotate_and_store(
        qkv, angles, pool, layer, meta, num_heads=num_heads), num_bytes)


def chain(name: str, arguments: list[tuple], run: Callable[..., object], num_bytes: int) -> dict[str, Any]:
    seconds = graph_seconds(lambda: [run(*each) for each in arguments], 20)
    return record(name, seconds / len(arguments), num_bytes)


def record(name: str, seconds: float, num_bytes: int) -> dict[str, Any]:
    limit = num_bytes / READ_LIMIT
    print(f"{name:36} {seconds * 1e6:8.2f} us, bytes {limit * 1e6:8.2f} us", flush=True)
    return {"name": name, "value": round(seconds * 1e6, 2), "unit": "us", "limit": round(limit * 1e6, 2),
            "share": round(limit / seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write the JSON there too")
    options = parser.parse_args()
    torch.manual_seed(0)
    records = [norm_after_product(num_rows) for num_rows in (64, 128, 256)]
    records += [measure(num_rows) for num_rows in (544, _MANY) for measure in (many_norms, activations, rotations)]
    print_json({"benchmark": "gpu_small_kernels", "gpu": torch.cuda.get_device_name(), "records": records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
