"""Attention kernels on one GPU: decode against the memory's bandwidth, prefill against the tensor cores.

Each case is a chain of layers in one CUDA graph, over keys and values larger than the L2 cache, replayed; times are
medians per layer. Decode bytes are the keys and values that must be read; prefill work is 4 · head_dim per query head
and visible key.

    python benchmarks/gpu_attention.py [--only decode|prefill|short] [--output results/...json]

On compute capability 9.0 prefill is timed twice: with the kernel made for it and with the one for all GPUs.

`short` is decode as a step has it, where attention takes little longer than a launch: between the library's products of
32 layers, each with weights and a cache of its own, so that nothing is found in the L2 cache that would not be there.
The same chain without rotary and attention is taken off. Besides the launch as chosen, which rotates too, it times two
launches, one for each; one whose programs are only as many as run at once; and one that starts when the kernel before
it has ended.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import environment, print_json

from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.hopper_prefill import HopperConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.rotary import triton as rotary

LLAMA, QWEN = (32, 8, 128), (28, 4, 128)
READ_LIMIT = 4.58e12
"""Bytes per second: an int64 sum over 8 GiB on an H200."""
PRODUCT_LIMIT = 790e12
"""bf16 FLOP/s: a large matrix product on an H200."""
TRITON = attention.PrefillConfig(block_m=64, tile=64, num_warps=4, num_stages=3, use_descriptor=True)
"""The kernel for all GPUs, as it is fastest on compute capability 9.0."""
_MIN_BYTES = 256 * 2**20
_MAX_LAYERS = 128
_STEP_LAYERS = 32


@dataclass(frozen=True)
class Problem:
    """Rows of (cached tokens, new tokens) and (query heads, kv heads, head_dim)."""

    name: str
    rows: list[tuple[int, int]]
    heads: tuple[int, int, int] = LLAMA
    tokens_per_block: int = 64
    window: int | None = None

    @property
    def is_decode(self) -> bool:
        return all(new == 1 for _, new in self.rows)

    @property
    def read_bytes(self) -> int:
        _, num_kv_heads, head_dim = self.heads
        return sum(min(cached + new, self.window or cached + new) for cached, new in self.rows) \
            * 2 * num_kv_heads * head_dim * 2

    @property
    def flops(self) -> int:
        num_heads, _, head_dim = self.heads
        pairs = sum(self._num_pairs(cached, new) for cached, new in self.rows)
        return 4 * head_dim * num_heads * pairs

    def _num_pairs(self, cached: int, new: int) -> int:
        """Query and visible key, of one head and row."""
        if self.window is None:
            return new * cached + new * (new + 1) // 2
        return sum(min(self.window, position + 1) for position in range(cached, cached + new))


DECODES = [
    Problem("batch 64 x 4096", [(4095, 1)] * 64),
    *(Problem(f"batch 1 x {n}", [(n - 1, 1)]) for n in (128, 192, 512, 2048, 8192, 32768, 131072)),
    Problem("batch 8 x 1024", [(1023, 1)] * 8),
    Problem("batch 64 x 192", [(191, 1)] * 64),
    Problem("batch 64 x 512", [(511, 1)] * 64),
    Problem("batch 256 x 192", [(191, 1)] * 256),
    Problem("batch 256 x 512", [(511, 1)] * 256),
    Problem("batch 64: 131072 and 63 x 512", [(131071, 1)] + [(511, 1)] * 63),
    Problem("batch 128, 1 to 8192", [(37 * 61 * n % 8192, 1) for n in range(128)]),
    Problem("batch 64 x 4096, 28/4 heads", [(4095, 1)] * 64, heads=QWEN),
    Problem("batch 64 x 4096, blocks of 16", [(4095, 1)] * 64, tokens_per_block=16),
]
SHORTS = [
    *(Problem(f"short, {n} x 192", [(191, 1)] * n) for n in (8, 32, 64, 128, 256)),
    *(Problem(f"short, {n} x 129 to 256", [(128 + 37 * i % 128, 1) for i in range(n)]) for n in (80, 128, 256)),
    *(Problem(f"short, {n} x 192, 28/4 heads", [(191, 1)] * n, heads=QWEN) for n in (64, 128, 256)),
]
PREFILLS = [
    *(Problem(f"prompt of {n}, 28/4 heads", [(0, n)], heads=QWEN) for n in (512, 1024, 2048, 8000, 32768)),
    Problem("prompt of 8192", [(0, 8192)]),
    Problem("8 prompts of 1000", [(0, 1000)] * 8),
    Problem("32 prompts of 914, 28/4 heads", [(0, 914)] * 32, heads=QWEN),
    Problem("64 prompts of 129, 28/4 heads", [(0, 129)] * 64, heads=QWEN),
    Problem("8192 tokens, window of 4096", [(0, 8192)], window=4096),
    Problem("2048 tokens after 30,000", [(30_000, 2048)]),
    Problem("64 tokens after 30,000", [(30_000, 64)]),
]


class Bench:
    """A problem's tensors on the device."""

    def __init__(self, problem: Problem, num_layers: int | None = None):
        self.problem = problem
        num_heads, num_kv_heads, head_dim = problem.heads
        size = problem.tokens_per_block
        counts = [-(-(cached + new) // size) for cached, new in problem.rows]
        bytes_per_layer = sum(counts) * size * num_kv_heads * head_dim * 4
        num_layers = num_layers or min(_MAX_LAYERS, max(4, -(-_MIN_BYTES // bytes_per_layer)))
        self.pool = torch.empty(sum(counts), num_layers, 2, num_kv_heads, size, head_dim, dtype=torch.bfloat16,
                                device="cuda").normal_()
        ids = torch.randperm(sum(counts)).split(counts)
        self.meta = AttentionMetadata.from_rows(
            [cached for cached, _ in problem.rows], [new for _, new in problem.rows], [part.tolist() for part in ids],
            num_decodes=sum(new == 1 for _, new in problem.rows), tokens_per_block=size, device="cuda")
        num_tokens = sum(new for _, new in problem.rows)
        self.q = torch.randn(num_tokens, num_heads, head_dim, device="cuda").bfloat16()

    def measure(self, *, repeats: int = 20, **plan_options: Any) -> float:
        """Median seconds per layer; the step's plan counts once per step."""
        def step() -> None:
            for layer in range(self.pool.shape[1]):
                attention.attend(self.q, None, self.pool, layer, plan, scale=self.q.shape[-1] ** -0.5)

        def make_plan() -> attention.Plan:
            return attention.plan(self.meta, self.pool, num_heads=self.problem.heads[0], window=self.problem.window,
                                  **plan_options)

        plan = make_plan()
        seconds = graph_seconds(step, repeats)
        return seconds / self.pool.shape[1]


class StepBench(Bench):
    """A problem's layers with the products around attention."""

    def __init__(self, problem: Problem):
        super().__init__(problem, _STEP_LAYERS)
        num_heads, num_kv_heads, head_dim = problem.heads
        width = num_heads * head_dim
        self.x = torch.randn(len(problem.rows), width, device="cuda").bfloat16()
        self.angles = rotary.prepare_angles(*torch.randn(2, len(problem.rows), head_dim // 2, device="cuda"))
        self.weights = [[torch.empty(width, n, dtype=torch.bfloat16, device="cuda").normal_(std=width ** -0.5)
                         for n in (width + 2 * num_kv_heads * head_dim, width)] for _ in range(_STEP_LAYERS)]

    def measure_step(self, plan: attention.Plan | None, *, is_one_launch: bool = True, repeats: int = 20) -> float:
        """Median seconds per layer; without rotary and attention where there is no plan."""
        options, scale = {"num_heads": self.q.shape[1]}, self.q.shape[-1] ** -0.5

        def attend(qkv: torch.Tensor, layer: int) -> torch.Tensor:
            if plan is None:
                return self.x
            if is_one_launch:
                return attention.rotate_and_attend(qkv, self.angles, self.pool, layer, plan, scale=scale, **options)
            q, kv = rotary.rotate_and_store(qkv, self.angles, self.pool, layer, self.meta, **options)
            return attention.attend(q, kv, self.pool, layer, plan, scale=scale)

        def step() -> None:
            x = self.x
            for layer, (qkv, o) in enumerate(self.weights):
                x = attend(x @ qkv, layer) @ o

        return graph_seconds(step, repeats) / _STEP_LAYERS


def graph_seconds(step: Callable[[], None], repeats: int) -> float:
    """Median seconds of one replay of what `step` launches."""
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


def run(problem: Problem) -> list[dict[str, Any]]:
    """The table's lines of a problem, one for each kernel that can do it."""
    bench = Bench(problem)
    kernels: dict[str, dict[str, Any]] = {"": {}}
    if not problem.is_decode and torch.cuda.get_device_capability() == (9, 0):
        kernels = {"hopper": {"prefill_config": HopperConfig()}, "triton": {"prefill_config": TRITON}}
    return [_record(problem, kernel, bench.measure(**options)) for kernel, options in kernels.items()]


def run_short(problem: Problem) -> list[dict[str, Any]]:
    """The table's lines of a problem in a step: the launch as chosen, and with one thing or another done otherwise."""
    bench = StepBench(problem)
    shape = attention.Shape.of(bench.pool, problem.heads[0])
    chosen = attention.decode_config_for(shape, gpu_features(bench.pool.device), len(problem.rows))
    rest = bench.measure_step(None)
    records = []
    for kernel, config in {"chosen": chosen, "two launches": chosen, "no hand-out": replace(chosen, hands_out=False),
                           "late": replace(chosen, starts_early=False)}.items():
        plan = attention.plan(bench.meta, bench.pool, num_heads=problem.heads[0], window=None, decode_config=config)
        seconds = bench.measure_step(plan, is_one_launch=kernel != "two launches")
        records.append(_record(problem, kernel, seconds - rest))
    return records


def _record(problem: Problem, kernel: str, seconds: float) -> dict[str, Any]:
    rate, limit, unit = (problem.read_bytes / seconds, READ_LIMIT, "TB/s") if problem.is_decode else \
        (problem.flops / seconds, PRODUCT_LIMIT, "TFLOP/s")
    record = {"name": problem.name, "us": round(seconds * 1e6, 2), "value": round(rate / 1e12, 3), "unit": unit,
              "limit": limit / 1e12, "share": round(rate / limit, 3)}
    if kernel:
        record["kernel"] = kernel
    print(f"{problem.name:36} {kernel:12} {record['us']:10.2f} us {record['value']:9.3f} {unit:8} "
          f"{record['share']:6.1%}", flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("decode", "prefill", "short"))
    parser.add_argument("--output", help="write the JSON there too")
    options = parser.parse_args()
    torch.manual_seed(0)
    parts = {"decode": (DECODES, run), "prefill": (PREFILLS, run), "short": (SHORTS, run_short)}
    records = [record for kind, (problems, measure) in parts.items() if options.only in (None, kind)
               for problem in problems for record in measure(problem)]
    print_json({"benchmark": "gpu_attention", "gpu": torch.cuda.get_device_name(), "records": records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
