"""GPU time of a layer's products by the number of tokens, to choose the numbers that steps are padded to.

    python benchmarks/gpu_sizes.py qwen2.5-7b --output results/nvidia-h200/X.json

One layer with made-up weights runs its products at multiples of 32 tokens, and of 64 above 4,096: milliseconds of the
median of three, and of the first time, in which libraries load kernels. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import environment, print_json

from pelton.checkpoint.hf_config import load_model_config
from pelton.models.decoder import Decoder
from pelton.runner.random_weights import make_random_weights

SHAPES = Path(__file__).parent / "shapes"
NUM_RUNS = 3
BUSY_CYCLES = 1_500_000
"""Before the first run, so that the host is ahead of the GPU."""


def measure(decoder: Decoder, num_tokens: int) -> dict[str, float]:
    began = time.perf_counter()
    decoder.run_products(num_tokens)
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(NUM_RUNS + 1)]
    torch.cuda._sleep(BUSY_CYCLES)
    ends[0].record()
    for end in ends[1:]:
        decoder.run_products(num_tokens)
        end.record()
    ends[-1].synchronize()
    times = [before.elapsed_time(after) for before, after in itertools.pairwise(ends)]
    return {"ms": round(statistics.median(times), 4), "first_ms": round(1e3 * first, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="qwen2.5-7b", help="of benchmarks/shapes, or a folder with config")
    parser.add_argument("--most", type=int, default=8192, help="tokens")
    parser.add_argument("--output", help="also write the result to this file")
    options = parser.parse_args()
    shape = SHAPES / options.shape
    config = replace(load_model_config(shape if shape.exists() else Path(options.shape)), num_layers=1)
    decoder = Decoder(config, make_random_weights(config, getattr(torch, config.dtype), torch.device("cuda"), 0))
    sizes = [size for size in (*range(32, 4097, 32), *range(4160, options.most + 1, 64)) if size <= options.most]
    with torch.inference_mode():
        records = [{"name": f"products.{size}", "unit": "ms", **measure(decoder, size)} for size in sizes]
    print_json({"benchmark": "gpu_sizes", "gpu": torch.cuda.get_device_name(), "shape": shape.name,
                "records": records, "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
