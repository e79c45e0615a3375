"""What limits that are never reached cost on one GPU: max_tokens far above what is generated, and a high max_seq_len.

Decode rates at batch 64 are 64 x 128 / (t(129 output tokens) - t(1 output token)) over distinct random prompts of 128
tokens. "Promised" requests may generate up to the sequence's end and are stopped from outside after as many tokens, as
a stop string would. Llama-3.1-8B's shape in bf16 on random weights; the engine is made again for each max_seq_len.

    python benchmarks/gpu_limits.py [--max-seq-lens 2048,16384,131072] [--output results/...json]

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, print_json

from pelton.build.limits import resolve_limits
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.physics import GIB
from pelton.runner.runner import Runner
from pelton.types import Output, Request, SamplingParams

BATCH, PROMPT, NUM_DECODED, NUM_RUNS = 64, 128, 128, 3


class Bench:
    """One engine."""

    def __init__(self, max_seq_len: int):
        self.config = load_model_config(Path(__file__).parent / "shapes" / "llama-3.1-8b")
        self.max_seq_len = max_seq_len
        build = BuildConfig(max_batch_size=BATCH, max_seq_len=max_seq_len, max_num_tokens=8192)
        run = ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        self.runner = Runner.from_config(self.config, resolve_limits(build, self.config), run)
        self.executor = Executor(loop_over(self.runner, run))
        self._draw = random.Random(0)

    def seconds(self, num_out: int, max_tokens: int) -> float:
        """Until all of a batch have generated num_out tokens, of the max_tokens that each might."""
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        requests = [Request(self._draw.choices(range(self.config.vocab_size), k=PROMPT), sampling_params=params)
                    for _ in range(BATCH)]
        num_tokens = {request.request_id: 0 for request in requests}

        def take(output: Output) -> int | None:
            num_tokens[output.request_id] += len(output.token_ids)
            return num_out if num_tokens[output.request_id] >= num_out < max_tokens else None

        began = time.perf_counter()
        self.executor.run(requests, take)
        seconds = time.perf_counter() - began
        assert all(num >= num_out for num in num_tokens.values())
        return seconds

    def rate(self, max_tokens: int | None) -> float:
        """Decoded tokens per second; max_tokens None is exactly as many as are generated."""
        times = {num: statistics.median(self.seconds(num, max_tokens or num) for _ in range(NUM_RUNS))
                 for num in (1 + NUM_DECODED, 1)}
        return BATCH * NUM_DECODED / (times[1 + NUM_DECODED] - times[1])

    def record(self) -> dict[str, Any]:
        promised = min(8000, self.max_seq_len - PROMPT)
        ledger, tables = self.runner.ledger, self.runner._slots.block_tables
        return {"max_seq_len": self.max_seq_len, "tokens_per_s": self.rate(None), "promised_max_tokens": promised,
                "promised_tokens_per_s": self.rate(promised), "step_host_ms": self.executor.stats().step_host_ms,
                "block_table_bytes": tables.size * 4, "fixed_gib": (ledger.fixed_bytes - ledger.reserve_bytes) / GIB,
                "num_blocks": ledger.num_blocks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-seq-lens", default="2048,16384,131072")
    parser.add_argument("--output")
    options = parser.parse_args()
    records = []
    for max_seq_len in options.max_seq_lens.split(","):
        bench = Bench(int(max_seq_len))
        with bench.executor:
            records.append(bench.record())
        print(records[-1], flush=True)
        del bench
        gc.collect()
        torch.cuda.empty_cache()
    print_json({"benchmark": "gpu_limits", "gpu": torch.cuda.get_device_name(), "records": records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
