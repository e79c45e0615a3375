"""Ten thousand mixed requests through one Executor, and what is left afterwards: nothing.

Prompts of all lengths, many with a shared start; every sampling parameter; stop tokens, ends as a stop string makes
them, cancels at random moments; a KV cache so small that sequences are preempted. At the end every request must have
ended once, all blocks and slots must be free and memory must be where it was after the first tenth of the requests.

    python benchmarks/gpu_soak.py --output results/nvidia-h200/X.json
    python benchmarks/gpu_soak.py --num-requests 300 --max-batch-size 32 --max-blocks 100    # a CPU will do

Prints one JSON line; exits with 1, saying what is wrong, if anything is left.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import queue
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from common import environment, print_json

from pelton.build.limits import resolve_limits
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ModelConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.runner.runner import Runner
from pelton.scheduler.integrity import check_integrity
from pelton.types import Output, Request, SamplingParams

SHAPE = ModelConfig(architecture="LlamaForCausalLM", vocab_size=4096, hidden_size=512, intermediate_size=1024,
                    num_layers=4, num_heads=8, num_kv_heads=2, head_dim=64, max_position_embeddings=2048, eos_ids=(2,))
CPU_SHAPE = dataclasses.replace(SHAPE, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=2, num_kv_heads=1,
                                head_dim=32)
MAX_SEQ_LEN, TOKENS_PER_BLOCK = 1024, 16
NUM_OPEN = 384
"""Requests in the engine at once: more than run together, so that some always wait."""
CANCEL_SHARE, FINISH_SHARE = 0.004, 0.002
"""Of news: after how many a random open request is cancelled, or its own completion ended as a stop string does."""
GROWTH_BYTES = 64 << 20
"""What torch and the driver may hold more at the end than after the first requests: less than 7 KB a request."""
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0}, {}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.8}, {"min_p": 0.05},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5}, {"repetition_penalty": 1.2, "temperature": 0.7},
    {"logprobs": 5}, {"logprobs": 0, "repetition_penalty": 1.1}, {"prompt_logprobs": 2}, {"logit_bias": {7: 4.0}},
    {"min_tokens": 8}, {"bad_words_token_ids": ((5, 6), (9,))}, {"n": 2}, {"stop_token_ids": tuple(range(40, 200))},
)


def make_requests(num: int, seed: int) -> Iterator[Request]:
    """Prompts of 1 to 700 tokens, a third with one of eight starts; outputs of 1 to 255 tokens, mostly short."""
    draw = random.Random(seed)
    starts = [draw.choices(range(3, SHAPE.vocab_size), k=320) for _ in range(8)]
    for i in range(num):
        start = draw.choice(starts)[:draw.choice((64, 160, 320))] if draw.random() < 1 / 3 else []
        rest = draw.choices(range(3, SHAPE.vocab_size), k=int(2 ** draw.uniform(0, 8.5)))
        params = {"temperature": 1.0, **SAMPLINGS[i % len(SAMPLINGS)]}
        max_tokens = int(2 ** draw.uniform(0, 8))
        params["min_tokens"] = min(params.get("min_tokens", 0), max_tokens)
        yield Request(start + rest, priority=int(draw.random() < 0.05), sampling_params=SamplingParams(
            max_tokens=max_tokens, seed=i, ignore_eos=bool(i % 2), detokenize=False, **params))


@dataclass
class Soak:
    """Drives requests through an executor and keeps the books.

    Attributes:
        reasons: how many completions ended for each reason; `stop_string` are those that were ended from outside.
    """

    executor: Executor
    seed: int
    reasons: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0

    def run(self, requests: Iterator[Request]) -> None:
        """Until every completion has ended."""
        draw = random.Random(self.seed)
        news: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        still_open: dict[tuple[str, int], int] = {}  # completion -> tokens so far
        while True:
            while len(still_open) < NUM_OPEN and (request := next(requests, None)) is not None:
                self.executor.enqueue_request(request, news.put)
                still_open |= {(request.request_id, index): 0 for index in range(request.sampling_params.n)}
            if not still_open:
                break
            for output in news.get(timeout=120):
                key = (output.request_id, output.index)
                if key not in still_open:
                    assert self._is_stopped(output), f"{key} goes on after its end"
                    continue
                still_open[key] += len(output.token_ids)
                self.num_tokens += len(output.token_ids)
                self._check(output)
                if output.finish_reason is not None:
                    self.reasons[output.finish_reason] += 1
                    del still_open[key]
                elif draw.random() < FINISH_SHARE:
                    self.executor.finish(*key, still_open.pop(key))
                    self.reasons["stop_string"] += 1
                elif draw.random() < CANCEL_SHARE:
                    self.executor.cancel(draw.choice(list(still_open))[0])

    def _is_stopped(self, output: Output) -> bool:
        """News that were under way when the completion was ended from outside."""
        return self.reasons["stop_string"] > 0 and output.finish_reason != "error"

    def _check(self, output: Output) -> None:
        assert output.finish_reason != "error", output.error
        assert all(0 <= token < SHAPE.vocab_size for token in output.token_ids), "a token outside the vocabulary"
        for entry in output.logprobs or ():
            assert all(value <= 1e-5 for value in entry.logprobs), "a log-probability above 0, or none"


def memory(device: str) -> dict[str, int]:
    """Bytes held: by torch's tensors and by all that uses the device; on a CPU the process's largest size so far."""
    if device != "cuda":
        return {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    gc.collect()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {"allocated_bytes": torch.cuda.memory_allocated(), "device_used_bytes": total - free}


def leftovers(executor: Executor, before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What is wrong at the end."""
    scheduler, stats = executor.loop.scheduler, executor.stats()
    check_integrity(scheduler)
    wrong = {
        "blocks in use": stats.num_blocks_used, "running": stats.num_running, "waiting": stats.num_waiting,
        "slots in use": scheduler.limits.max_batch_size - len(scheduler._free_slots),
        "requests known": len(executor._pending), "live sequences": len(scheduler._live),
    }
    problems = [f"{count} {name}" for name, count in wrong.items() if count]
    problems += [f"{name} grew by {after[name] - before[name]}" for name in before
                 if name != "process_bytes" and after[name] > before[name] + GROWTH_BYTES]
    if not stats.num_preemptions:
        problems.append("nothing was preempted: the cache was not small enough")
    if not stats.num_cached_tokens:
        problems.append("no block was reused")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-requests", type=int, default=10_000)
    parser.add_argument("--max-batch-size", type=int, default=128)
    parser.add_argument("--max-blocks", type=int, default=300, help=f"KV blocks of {TOKENS_PER_BLOCK} tokens")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="also write the result to this file")
    options = parser.parse_args()
    build = BuildConfig(max_batch_size=options.max_batch_size, max_seq_len=MAX_SEQ_LEN, max_num_tokens=1024,
                        tokens_per_block=TOKENS_PER_BLOCK)
    config = ExecutorConfig(device=options.device, kv_cache_config=KvCacheConfig(max_blocks=options.max_blocks))
    device = "cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu"
    shape = SHAPE if device == "cuda" else CPU_SHAPE
    runner = Runner.from_config(shape, resolve_limits(build, shape), config)
    with Executor(loop_over(runner, config)) as executor:
        soak = Soak(executor, options.seed)
        soak.run(make_requests(max(options.num_requests // 10, 1), options.seed + 1))
        before = memory(device)
        soak, began = Soak(executor, options.seed), time.perf_counter()
        soak.run(make_requests(options.num_requests, options.seed))
        seconds = time.perf_counter() - began
        stats, after = executor.stats(), memory(device)
        problems = leftovers(executor, before, after)
    print_json({
        "benchmark": "gpu_soak", "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "num_requests": options.num_requests, "ends": dict(soak.reasons), "output_tokens": soak.num_tokens,
        "seconds": round(seconds, 2), "tokens_per_s": round(soak.num_tokens / seconds, 1),
        "num_steps": stats.num_steps, "num_preemptions": stats.num_preemptions,
        "num_cached_tokens": stats.num_cached_tokens, "memory_before": before, "memory_after": after,
        "problems": problems, "environment": environment()}, options.output)
    if problems:
        sys.exit("left over: " + "; ".join(problems))


if __name__ == "__main__":
    main()
