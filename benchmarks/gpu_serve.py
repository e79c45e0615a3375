"""What one GPU reaches of its limit: `make bench-gpu`, all parts of it in one file.

    python benchmarks/gpu_serve.py --only decode,prefill --models llama-3.1-8b --output results/nvidia-h200/X.json

The engine in this process: decode by batch, offline (all requests queued at once), prefill of one long prompt. Weights
are made up on the device (normal, different in each tensor), prompts are random and distinct, the prefix cache is off,
end-of-sequence is ignored; greedy at batch 1 and temperature 1 above. Decode-only rates are
batch x 128 / (t(129 output tokens) - t(1 output token)) with prompts of 128 tokens.

Over HTTP: ttft, streams and start, see gpu_http.py. They come first, as a server wants the GPU to itself.

Prints one JSON line; gpu_records.py says what a record is. A part that fails leaves the others' records, and the file
holds at any time what there is.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gpu_http
import torch
from common import environment, print_json, write_json
from gpu_records import make_record

from pelton.build.limits import resolve_limits
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.engine.offline import run_requests
from pelton.physics import Roofline, find_hardware, prefill_flops
from pelton.runner.runner import Runner
from pelton.types import Request, SamplingParams

SHAPES = Path(__file__).parent / "shapes"
PARTS = ("decode", "offline", "prefill")
ALL_PARTS = (*PARTS, *gpu_http.PARTS)
PROMPT, NUM_DECODED = 128, 128


class Bench:
    """One model on the GPU and what is measured of it."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = f"{name}.bf16", options
        self.config = load_model_config(SHAPES / name)
        build = BuildConfig(max_batch_size=options.max_batch_size, max_seq_len=16384,
                            max_num_tokens=options.max_num_tokens)
        cache = KvCacheConfig(enable_block_reuse=False, free_memory_fraction=options.free_memory_fraction)
        run = ExecutorConfig(device="cuda", kv_cache_config=cache)
        began = time.perf_counter()
        self.runner = Runner.from_config(self.config, resolve_limits(build, self.config), run)
        self.ready_s = time.perf_counter() - began
        self.executor = Executor(loop_over(self.runner, run))
        self.roofline = Roofline(model=self.config, hardware=find_hardware(torch.cuda.get_device_name()))
        self._draw = random.Random(0)

    def run(self, num: int, num_in: int, num_out: int, temperature: float) -> float:
        """Seconds from the first request queued to the last token."""
        params = SamplingParams(max_tokens=num_out, ignore_eos=True, temperature=temperature, detokenize=False)
        requests = [Request(self._draw.choices(range(self.config.vocab_size), k=num_in), sampling_params=params)
                    for _ in range(num)]
        seconds, num_tokens = run_requests(self.executor, requests)
        assert num_tokens == num * num_out, "requests ended early"
        return seconds

    def decode(self) -> Iterator[dict[str, Any]]:
        for size in self.options.batch_sizes:
            temperature = float(size > 1)
            times = {num_out: statistics.median(self.run(size, PROMPT, num_out, temperature)
                                                for _ in range(self.options.num_runs))
                     for num_out in (1 + NUM_DECODED, 1)}
            rate = size * NUM_DECODED / (times[1 + NUM_DECODED] - times[1])
            yield self.record(f"decode.b{size}", rate, "tokens/s",
                              self.roofline.decode_tokens_per_s(size, PROMPT + NUM_DECODED / 2))

    def offline(self) -> Iterator[dict[str, Any]]:
        for num_in, num_out, num in ((128, 128, self.options.num_short), (1000, 1000, self.options.num_long)):
            if not num:
                continue
            before = self.executor.stats().num_preemptions
            rate = num * num_out / self.run(num, num_in, num_out, 1.0)
            preemptions = self.executor.stats().num_preemptions - before
            limit = num_out / self.roofline.full_load(num_in, num_out, min(num, self.options.max_batch_size)).seconds
            yield {**self.record(f"offline.{num_in}-{num_out}", rate, "tokens/s", limit), "num_requests": num,
                   "num_preemptions": preemptions}

    def prefill(self) -> Iterator[dict[str, Any]]:
        num_tokens = 8000
        self.run(1, num_tokens, 1, 0.0)
        seconds = statistics.median(self.run(1, num_tokens, 1, 0.0) for _ in range(5))
        yield self.record(f"prefill.{num_tokens}", prefill_flops(self.config, num_tokens) / seconds / 1e12, "TFLOP/s",
                          self.roofline.hardware.peak_flops("bf16") / 1e12)

    def record(self, name: str, value: float, unit: str, limit: float) -> dict[str, Any]:
        return make_record(f"{self.name}.{name}", value, unit, limit,
                           note=f"host {self.executor.stats().step_host_ms:.2f} ms/step")

    def memory(self) -> dict[str, float]:
        """What the process took at most, beside what the ledger allows it, in GiB."""
        ledger = self.runner.ledger
        free, total = torch.cuda.mem_get_info()
        gib = 2**30
        return {"reserved_by_torch": torch.cuda.max_memory_reserved() / gib, "used": (total - free) / gib,
                "ledger": (ledger.fixed_bytes + ledger.kv_blocks_bytes) / gib, "num_blocks": ledger.num_blocks,
                "ready_s": self.ready_s}


class Results:
    """Records as they are made, so that what fails later takes none of them along."""

    def __init__(self, output: str | None):
        self._output = output
        self._records: list[dict[str, Any]] = []
        self._memory: dict[str, dict[str, float]] = {}
        self.failures: list[str] = []

    def measure(self, records: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Takes what the function yields until it fails."""
        try:
            for record in records():
                print(f"{record['name']}: {record['value']:g} {record['unit']}", file=sys.stderr, flush=True)
                self._records.append(record)
                if self._output:
                    write_json(self._content(), self._output)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.failures.append(f"{type(error).__name__}: {error}")

    def measure_engine(self, name: str, parts: list[str], options: argparse.Namespace) -> None:
        """This process's parts of one model, and its memory."""
        bench = Bench(name, options)
        with bench.executor:
            for part in parts:
                self.measure(getattr(bench, part))
            self._memory[name] = bench.memory()
        del bench
        torch.cuda.empty_cache()

    def print(self) -> None:
        print_json(self._content(), self._output)

    def _content(self) -> dict[str, Any]:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return {"benchmark": "gpu_serve", "gpu": gpu, "records": self._records, "memory": self._memory,
                "failures": self.failures, "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ALL_PARTS), help=f"parts of {','.join(ALL_PARTS)}")
    parser.add_argument("--models", default="llama-3.1-8b,qwen2.5-7b")
    parser.add_argument("--batch-sizes", default="1,8,32,64,128,256")
    parser.add_argument("--max-batch-size", type=int, default=256)
    parser.add_argument("--max-num-tokens", type=int, default=8192)
    parser.add_argument("--free-memory-fraction", type=float, default=0.95,
                        help="of what weights and activations leave, for the cache; the engine's default is 0.9")
    parser.add_argument("--num-short", type=int, default=4096, help="requests of 128/128")
    parser.add_argument("--num-long", type=int, default=512, help="requests of 1000/1000")
    parser.add_argument("--num-runs", type=int, default=3)
    parser.add_argument("--output", help="also write the result to this file")
    gpu_http.add_options(parser)
    options = parser.parse_args()
    options.batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    asked = options.only.split(",")
    if unknown := set(asked) - set(ALL_PARTS):
        parser.error(f"--only: {unknown.pop()!r} is none of {', '.join(ALL_PARTS)}")
    results = Results(options.output)
    for measurement in gpu_http.Bench(options).measurements(asked):
        results.measure(measurement)
    if here := [part for part in PARTS if part in asked]:
        for name in options.models.split(","):
            results.measure_engine(name, here, options)
    results.print()
    if results.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
