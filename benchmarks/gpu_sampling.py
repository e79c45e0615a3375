"""The GPU's sampler against the memory's bandwidth: one draw for every row of a batch, and log-probabilities.

Each case is some draws in one CUDA graph, over two sets of logits in turn, replayed; times are medians per draw. The
limit is the time to read the logits once. Logits are peaked as a trained model's (a Zipf-like fall with noise) or flat
as a random one's.

    python benchmarks/gpu_sampling.py [--rows 1,8,64,256] [--output results/...json]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import environment, print_json

from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.state import SlotParams
from pelton.types import SamplingParams

READ_LIMIT = 4.58e12
"""Bytes per second: an int64 sum over 8 GiB on an H200."""
CASES = {
    "greedy": [SamplingParams(temperature=0.0)],
    "temperature": [SamplingParams(temperature=0.8)],
    "top_k 50": [SamplingParams(temperature=0.8, top_k=50)],
    "top_p 0.9": [SamplingParams(temperature=0.8, top_p=0.9)],
    "top_k 50, top_p 0.9": [SamplingParams(temperature=0.8, top_k=50, top_p=0.9)],
    "min_p 0.05": [SamplingParams(temperature=0.8, min_p=0.05)],
    "top_k 50, top_p 0.9, min_p 0.05": [SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.05)],
    "top_p 0.9, min_p 0.05": [SamplingParams(temperature=0.8, top_p=0.9, min_p=0.05)],
    "top_k 20000": [SamplingParams(temperature=0.8, top_k=20000)],
    "top_k 20000, top_p 0.9": [SamplingParams(temperature=0.8, top_k=20000, top_p=0.9)],
    "greedy, temperature, top_p 0.9, top_k 50": [
        SamplingParams(temperature=0.0), SamplingParams(temperature=0.8), SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=0.8, top_k=50)],
}
_NUM_DRAWS = 6


def make_logits(kind: str, num_rows: int, vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    """[R, V] float32 on the device."""
    noise = torch.randn(num_rows, vocab_size, device="cuda", generator=generator)
    if kind == "flat":
        return noise
    rank = torch.rand(num_rows, vocab_size, device="cuda", generator=generator).argsort(dim=-1)
    return noise - 2.0 * torch.log1p(rank.float())


def make_rows(params: list[SamplingParams], num_rows: int, vocab_size: int) -> sampler.DeviceRows:
    """Rows that have the parameters in turn."""
    state = SlotParams(num_rows, vocab_size, torch.device("cuda"))
    packed = state.pack([params[row % len(params)] for row in range(num_rows)])
    state.params.copy_(torch.from_numpy(packed))
    state.seeds.copy_(torch.from_numpy(np.random.default_rng(0).integers(0, 2**62, num_rows)))
    index = torch.arange(num_rows, device="cuda")
    return state.rows(index, index.int())


def graph_seconds(draw: Callable[[torch.Tensor], object], logits: list[torch.Tensor], num_replays: int = 12) -> float:
    """Median seconds of one draw."""
    draw(logits[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(_NUM_DRAWS):
            draw(logits[i % len(logits)])
    graph.replay()
    times = []
    for _ in range(num_replays):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / _NUM_DRAWS)
    return statistics.median(times)


def records(num_rows: int, kind: str, vocab_size: int) -> list[dict[str, Any]]:
    """All cases of one size, printed as they come."""
    generator = torch.Generator(device="cuda").manual_seed(num_rows)
    logits = [make_logits(kind, num_rows, vocab_size, generator) for _ in range(2)]
    found = []

    def add(name: str, draw: Callable[[torch.Tensor], object]) -> None:
        microseconds = graph_seconds(draw, logits) * 1e6
        limit = num_rows * vocab_size * 4 / READ_LIMIT * 1e6
        found.append({"name": name, "rows": num_rows, "logits": kind, "vocab_size": vocab_size,
                      "us": round(microseconds, 2), "limit_us": round(limit, 2)})
        print(f"{num_rows:4} {kind:7} {name:42} {microseconds:9.2f} us, limit {limit:6.2f}", flush=True)

    for name, params in CASES.items():
        rows = make_rows(params, num_rows, vocab_size)
        truncates = any(p.top_k > 0 or p.top_p < 1 or p.min_p > 0 for p in params)
        add(name, lambda x, rows=rows, truncates=truncates: sampler.sample(x, rows, truncates=truncates))
    index = torch.arange(num_rows, device="cuda")
    for num_top in (0, 5, 20):
        add(f"logprobs, {num_top} likeliest", lambda x, num_top=num_top: sampler.logprobs(x, index, index, num_top))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64,256")
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--kinds", default="peaked,flat")
    parser.add_argument("--output", help="write the JSON there too")
    options = parser.parse_args()
    found = [record for num_rows in map(int, options.rows.split(",")) for kind in options.kinds.split(",")
             for record in records(num_rows, kind, options.vocab_size)]
    print_json({"benchmark": "gpu_sampling", "gpu": torch.cuda.get_device_name(), "records": found,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
