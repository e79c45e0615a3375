"""Pelton beside transformers on this CPU: the same random Qwen2-0.5B-shaped bf16 model, the same requests, one run.

    python benchmarks/cpu_vs_transformers.py --output results/cpu/DATE-vs-transformers.json

transformers runs as its documentation shows: default attention and cache, one left-padded batch, greedy. A batch ends
with its longest member; only the tokens that were asked for count as useful. Both sides take turns, so that whatever
else the machine does meets both, each in a process of its own: the threads that OpenMP keeps for one would slow the
other down. Only the ratio is a result; the times are those of a shared machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import environment, make_checkpoint, print_json

from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.executor import Executor
from pelton.engine.offline import run_requests
from pelton.types import Request, SamplingParams

VOCAB = 151936


def draw_requests(kind: str, seed: int) -> list[tuple[list[int], int]]:
    """(prompt, output length) pairs: 8 equal ones, or 32 of 16 to 256 tokens in and 8 to 128 out."""
    draw = random.Random(seed)
    if kind == "equal-8":
        lengths = [(128, 64)] * 8
    else:
        lengths = [(draw.randint(16, 256), draw.randint(8, 128)) for _ in range(32)]
    return [([draw.randrange(VOCAB) for _ in range(num_in)], num_out) for num_in, num_out in lengths]


def run_transformers(model, pairs) -> float:
    """Seconds for one left-padded batch, until its longest member ends."""
    longest = max(len(prompt) for prompt, _ in pairs)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in pairs])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in pairs])
    num_new = max(num_out for _, num_out in pairs)
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False,
                             pad_token_id=0)
    wall = time.perf_counter() - began
    assert out.shape[1] == longest + num_new
    return wall


def run_pelton(executor: Executor, pairs) -> float:
    """Seconds from the first request queued to the last token."""
    requests = [Request(prompt, sampling_params=SamplingParams(temperature=0.0, max_tokens=num_out, ignore_eos=True))
                for prompt, num_out in pairs]
    wall, count = run_requests(executor, requests)
    assert count == sum(num_out for _, num_out in pairs)
    return wall


def serve_transformers(checkpoint: Path, threads: int) -> Callable[[str, bool], dict[str, float]]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()

    def run(kind: str, is_warmup: bool) -> dict[str, float]:
        pairs = draw_requests(kind, seed=1)
        return {"seconds": run_transformers(model, [(prompt, 4) for prompt, _ in pairs[:2]] if is_warmup else pairs)}

    return run


def serve_pelton(checkpoint: Path, threads: int) -> Callable[[str, bool], dict[str, float]]:
    engine_dir = ensure_engine(str(checkpoint), BuildConfig(max_seq_len=1024))
    config = ExecutorConfig(num_threads=threads, kv_cache_config=KvCacheConfig(max_blocks=512,
                                                                              enable_block_reuse=False))
    executor = Executor(engine_dir, config)

    def run(kind: str, is_warmup: bool) -> dict[str, float]:
        pairs = draw_requests(kind, seed=1)
        seconds = run_pelton(executor, pairs[:2] if is_warmup else pairs)
        return {"seconds": seconds, "step_host_ms": executor.stats().step_host_ms}

    return run


SIDES = {"pelton": serve_pelton, "transformers": serve_transformers}


class Side:
    """One of the two, in a process that runs what it is told to and sleeps meanwhile."""

    def __init__(self, name: str, checkpoint: Path, threads: int):
        command = [sys.executable, __file__, "--side", name, "--folder", str(checkpoint), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, kind: str, *, is_warmup: bool = False) -> dict[str, float]:
        self._process.stdin.write(json.dumps([kind, is_warmup]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="equal-8,mixed-32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "pelton-bench-qwen2-0.5b"))
    parser.add_argument("--output")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = SIDES[args.side](Path(args.folder), args.threads)
        for line in sys.stdin:
            print(json.dumps(run(*json.loads(line))), flush=True)
        return 0
    checkpoint = make_checkpoint(Path(args.folder))
    record = {"name": "cpu_vs_transformers", "model": "Qwen2-0.5B shape, random bf16 weights", "threads": args.threads,
              "rounds": args.rounds, **environment(), "cases": []}
    sides = {name: Side(name, checkpoint, args.threads) for name in SIDES}
    try:
        for kind in args.cases.split(","):
            pairs = draw_requests(kind, seed=1)
            useful = sum(num_out for _, num_out in pairs)
            for side in sides.values():
                side.run(kind, is_warmup=True)
            rounds = [{name: side.run(kind) for name, side in sides.items()} for _ in range(args.rounds)]
            rates = {name: [useful / found[name]["seconds"] for found in rounds] for name in SIDES}
            record["cases"].append({
                "case": kind, "lengths_in_out": [(len(prompt), num_out) for prompt, num_out in pairs],
                "useful_tokens": useful, "pelton_tokens_per_s": rates["pelton"],
                "transformers_tokens_per_s": rates["transformers"],
                "ratio": statistics.median(rates["pelton"]) / statistics.median(rates["transformers"]),
                "step_host_ms_median": rounds[-1]["pelton"]["step_host_ms"],
            })
            print(f"{kind}: {record['cases'][-1]['ratio']:.2f}x", file=sys.stderr)
    finally:
        for side in sides.values():
            side.close()
    print_json(record, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
