"""The CPU sampler against the usual one: a full sort, softmax, torch's own random numbers, argmax of p / exponential.

Both sides get the same logits in one run, over a vocabulary of 151,936: peaked as a trained model's (a Zipf-like fall
with noise) and flat as a random one's. Prints milliseconds per call and their ratio as one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import environment, print_json

from pelton.kernels.sampling import cpu
from pelton.kernels.sampling.columns import Columns

VOCAB_SIZE = 151_936
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top_k_50": {"temperature": 0.8, "top_k": 50},
    "top_p_0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_k_50_top_p_0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min_p_0.05": {"temperature": 0.8, "min_p": 0.05},
}


def make_logits(kind: str, num_rows: int) -> torch.Tensor:
    """[R, V] float32."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_rows, VOCAB_SIZE, generator=generator)
    if kind == "flat":
        return noise
    rank = torch.stack([torch.randperm(VOCAB_SIZE, generator=generator) for _ in range(num_rows)])
    return noise - 2.0 * torch.log1p(rank.float())


def ours(logits: torch.Tensor, case: dict[str, float]) -> torch.Tensor:
    num_rows = len(logits)
    one = np.ones(num_rows)
    return cpu.sample(logits, Columns(
        temperature=np.full(num_rows, case["temperature"], np.float32),
        top_k=np.full(num_rows, case.get("top_k", 0), np.int32), top_p=one * case.get("top_p", 1.0),
        min_p=one * case.get("min_p", 0.0), seed=np.arange(num_rows), position=np.arange(num_rows),
        repetition=one, frequency=one * 0, presence=one * 0))


def usual(logits: torch.Tensor, case: dict[str, float]) -> torch.Tensor:
    if not case["temperature"]:
        return logits.argmax(dim=-1)
    logits = logits / case["temperature"]
    if "min_p" in case:
        probs = logits.softmax(dim=-1)
        logits = logits.masked_fill(probs < case["min_p"] * probs.amax(dim=-1, keepdim=True), -torch.inf)
    if "top_k" in case or "top_p" in case:
        values, ids = logits.sort(dim=-1)
        if "top_k" in case:
            values[:, :-int(case["top_k"])] = -torch.inf
        if "top_p" in case:
            values[values.softmax(dim=-1).cumsum(dim=-1) <= 1 - case["top_p"]] = -torch.inf
        logits = torch.empty_like(logits).scatter_(1, ids, values)
    probs = logits.softmax(dim=-1)
    return probs.div_(torch.empty_like(probs).exponential_()).argmax(dim=-1)


def median_ms(call: Callable[[], Any], num_runs: int) -> float:
    times = []
    for _ in range(num_runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times[1:]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--num-runs", type=int, default=5)
    parser.add_argument("--output", help="also write the result to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = []
    for kind in ("peaked", "flat"):
        for num_rows in map(int, options.batch_sizes.split(",")):
            logits = make_logits(kind, num_rows)
            for name, case in CASES.items():
                mine = median_ms(lambda logits=logits, case=case: ours(logits, case), options.num_runs)
                theirs = median_ms(lambda logits=logits, case=case: usual(logits, case), options.num_runs)
                records.append({"name": f"sampling.{kind}.{name}.b{num_rows}", "value": mine, "unit": "ms",
                                "peer": theirs, "ratio": round(theirs / mine, 2)})
    print_json({"benchmark": "sampling_cpu", "vocab_size": VOCAB_SIZE, "threads": options.threads, "records": records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
