"""Pelton beside transformers on this CPU: the same random Qwen2-0.5B-shaped bf16 model, the same requests, one run.

    python benchmarks/cpu_vs_transformers.py --output results/cpu/DATE-vs-transformers.json

transformers runs as its documentation shows: default attention and cache, one left-padded batch, greedy. A batch ends
with its longest member; only the tokens that were asked for count as useful. Both sides take turns, so that whatever
else the machine does meets both. Only the ratio is a result; the times are those of a shared machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "pelton-bench-qwen2-0.5b"))
    parser.add_argument("--output")
    args = parser.parse_args()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    checkpoint = make_checkpoint(Path(args.folder))
    engine_dir = ensure_engine(str(checkpoint), BuildConfig(max_seq_len=1024))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    config = ExecutorConfig(num_threads=args.threads, kv_cache_config=KvCacheConfig(max_blocks=512,
                                                                                   enable_block_reuse=False))
    record = {"name": "cpu_vs_transformers", "model": "Qwen2-0.5B shape, random bf16 weights", "threads": args.threads,
              "rounds": args.rounds, **environment(), "cases": []}
    with Executor(engine_dir, config) as executor:
        for kind in ("equal-8", "mixed-32"):
            pairs = draw_requests(kind, seed=1)
            useful = sum(num_out for _, num_out in pairs)
            theirs, ours = [], []
            run_pelton(executor, pairs[:2])
            run_transformers(model, [(prompt, 4) for prompt, _ in pairs[:2]])
            for _ in range(args.rounds):
                theirs.append(useful / run_transformers(model, pairs))
                ours.append(useful / run_pelton(executor, pairs))
            record["cases"].append({
                "case": kind, "lengths_in_out": [(len(prompt), num_out) for prompt, num_out in pairs],
                "useful_tokens": useful, "pelton_tokens_per_s": ours, "transformers_tokens_per_s": theirs,
                "ratio": statistics.median(ours) / statistics.median(theirs),
                "step_host_ms_median": executor.stats().step_host_ms,
            })
            print(f"{kind}: {record['cases'][-1]['ratio']:.2f}x", file=sys.stderr)
    print_json(record, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
