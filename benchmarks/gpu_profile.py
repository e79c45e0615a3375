"""Where one GPU's time goes: microseconds a step by kind of kernel, the share of time it is busy, the largest gaps.

Steady decode at each batch size and prompts of given lengths run through the engine, with made-up weights, first alone
and then under torch's profiler (kineto, GPU activities only). A decode window goes from the first kernel of one step to
the first kernel of a later one; a prompt's from its first kernel to the end of its last. "Busy" is the union of the
kernels' and copies' times over the window. Kernels that start before the one before them has ended are charged from
that end on, so that a step's kernels add up to its busy time.

    python benchmarks/gpu_profile.py llama-3.1-8b:1,64:8192 qwen2.5-7b::129 --output results/nvidia-h200/X.json

Each case is SHAPE:BATCH_SIZES:PROMPT_LENGTHS. Prints tables on standard error and one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import pkgutil
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import environment, print_json
from torch.profiler import ProfilerActivity, profile
from triton.runtime import JITFunction

import pelton.kernels
from pelton.build.limits import resolve_limits
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.runner.runner import Runner
from pelton.types import Output, Request, SamplingParams

SHAPES = Path(__file__).parent / "shapes"
PROMPT = 128
WARM_STEPS, TIMED_STEPS, PROFILED_STEPS = 24, 64, 32
MOST_STEPS = 1024
"""A batch is cancelled long before."""
STEP_START = "fill_kernel"
"""The first kernel of a decode step."""
PRODUCTS = ("qkv", "o", "gate_up", "down")
LIBRARY_PRODUCTS = re.compile(r"nvjet|gemm|cutlass|cublas|splitk|gemv", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """One kernel or copy on the GPU, in microseconds."""

    name: str
    start: float
    stop: float


@dataclass
class Total:
    us: float = 0.0
    count: int = 0


@dataclass
class Window:
    """What the GPU did between two moments."""

    wall_us: float
    busy_us: float
    groups: dict[str, Total]
    kernels: dict[str, Total]
    gaps: dict[str, Total] = field(default_factory=dict)
    largest_gap_us: float = 0.0

    def record(self, num_steps: int) -> dict[str, Any]:
        def per_step(totals: dict[str, Total], most: int | None = None) -> dict[str, dict[str, float]]:
            ranked = sorted(totals.items(), key=lambda item: -item[1].us)[:most]
            return {name: {"us": round(total.us / num_steps, 2), "count": round(total.count / num_steps, 2)}
                    for name, total in ranked}

        return {"num_steps": num_steps, "profiled_step_ms": round(self.wall_us / num_steps / 1e3, 4),
                "busy_share": round(self.busy_us / self.wall_us, 4), "groups": per_step(self.groups),
                "kernels": per_step(self.kernels), "gaps": per_step(self.gaps, 8),
                "largest_gap_us": round(self.largest_gap_us, 1)}


def kernel_groups() -> dict[str, str]:
    """Kernel name -> op, from the folder that each of our kernels lives in."""
    groups = {}
    for info in pkgutil.walk_packages(pelton.kernels.__path__, "pelton.kernels."):
        parts = info.name.split(".")
        if len(parts) == 4 and parts[3] not in ("cpu", "reference"):
            module = importlib.import_module(info.name)
            names = [name for name, value in vars(module).items() if isinstance(value, JITFunction)]
            groups.update(dict.fromkeys(names, parts[2]))
    return groups


def group_of(name: str, groups: dict[str, str]) -> str:
    if name.startswith(("Memcpy", "Memset")):
        return "copies"
    if name in groups:
        return "product" if groups[name] == "linear" else groups[name]
    return "product" if LIBRARY_PRODUCTS.search(name) else "other"


def summarize(spans: list[Span], stop: float, groups: dict[str, str]) -> Window:
    """What the spans, in the order of their starts, did until `stop`; products are told apart by their order."""
    window = Window(stop - spans[0].start, 0.0, defaultdict(Total), defaultdict(Total), defaultdict(Total))
    labels = label_products([span for span in spans if span.start < stop], groups)
    until, last = spans[0].start, ""
    for span, group in labels:
        if span.start > until:
            gap = window.gaps[f"{last} > {span.name}"]
            gap.us, gap.count = gap.us + span.start - until, gap.count + 1
            window.largest_gap_us = max(window.largest_gap_us, span.start - until)
        busy = max(0.0, min(span.stop, stop) - max(span.start, until))
        for total in (window.groups[group], window.kernels[f"{group}: {span.name}"]):
            total.us, total.count = total.us + busy, total.count + 1
        window.busy_us += busy
        if span.stop > until:
            until, last = span.stop, span.name
    if stop > until:
        gap = window.gaps[f"{last} > {STEP_START}"]
        gap.us, gap.count = gap.us + stop - until, gap.count + 1
    return window


def label_products(spans: list[Span], groups: dict[str, str]) -> list[tuple[Span, str]]:
    """Each span's group; a product is the one whose turn it is, the head is the one before tokens are drawn."""
    labels = [[span, group_of(span.name, groups)] for span in spans]
    turn, last = 0, None
    for i, (span, group) in enumerate(labels):
        if group == "product":
            if "splitkreduce" in span.name.lower() and last is not None:
                labels[i][1] = labels[last][1]
                continue
            labels[i][1] = PRODUCTS[turn % len(PRODUCTS)]
            turn, last = turn + 1, i
        elif group == "sampling" and last is not None:
            labels[last][1], turn, last = "head", 0, None
    return [(span, group) for span, group in labels]


def read_spans(prof: profile) -> list[Span]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = [Span(event["name"], event["ts"], event["ts"] + event["dur"]) for event in events
             if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    return sorted(spans, key=lambda span: span.start)


class Profiler:
    """One model on the GPU."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name = name
        self.config = load_model_config(SHAPES / name)
        build = BuildConfig(max_batch_size=options.max_batch_size, max_seq_len=16384,
                            max_num_tokens=options.max_num_tokens)
        run = ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        self.runner = Runner.from_config(self.config, resolve_limits(build, self.config), run)
        self.executor = Executor(loop_over(self.runner, run))
        self._draw = random.Random(0)
        self._groups = kernel_groups()

    def decode_ms(self, size: int) -> dict[str, float]:
        """Milliseconds of a steady decode step as a caller sees them, and of the host's work in it."""
        with Decoding(self, size) as decoding:
            decoding.wait(WARM_STEPS + TIMED_STEPS)
            host_ms = self.executor.stats().step_host_ms
        times = decoding.times[WARM_STEPS:WARM_STEPS + TIMED_STEPS]
        return {"step_ms": round(1e3 * (times[-1] - times[0]) / (len(times) - 1), 4), "host_ms": round(host_ms, 3)}

    def decode(self, size: int) -> dict[str, Any]:
        prof = profile(activities=[ProfilerActivity.CUDA])
        with Decoding(self, size) as decoding:
            decoding.wait(WARM_STEPS)
            prof.start()
            decoding.wait(len(decoding.times) + PROFILED_STEPS + 8)
            torch.cuda.synchronize()
            prof.stop()
        spans = read_spans(prof)
        # The last ones, as the profiler holds up some of the first.
        starts = [i for i, span in enumerate(spans) if span.name == STEP_START][-PROFILED_STEPS - 2:-1]
        window = summarize(spans[starts[0]:], spans[starts[-1]].start, self._groups)
        return window.record(len(starts) - 1)

    def prompt_ms(self, num_tokens: int) -> dict[str, float]:
        """Milliseconds from a request queued to its first token, the median of several."""
        times = [self._first_token_ms(num_tokens) for _ in range(12)][2:]
        return {"step_ms": round(statistics.median(times), 4), "least_ms": round(min(times), 4),
                "host_ms": round(self.executor.stats().step_host_ms, 3)}

    def prompt(self, num_tokens: int) -> dict[str, Any]:
        prof = profile(activities=[ProfilerActivity.CUDA])
        self._first_token_ms(num_tokens)
        prof.start()
        self._first_token_ms(num_tokens)
        torch.cuda.synchronize()
        prof.stop()
        spans = read_spans(prof)
        return summarize(spans, max(span.stop for span in spans), self._groups).record(1)

    def _first_token_ms(self, num_tokens: int) -> float:
        done = threading.Event()
        request = self.request(num_tokens, 1, 0.0)
        began = time.perf_counter()
        self.executor.enqueue_request(request, lambda outputs: done.set())
        done.wait()
        return 1e3 * (time.perf_counter() - began)

    def request(self, num_in: int, num_out: int, temperature: float) -> Request:
        params = SamplingParams(max_tokens=num_out, ignore_eos=True, temperature=temperature, detokenize=False)
        return Request(self._draw.choices(range(self.config.vocab_size), k=num_in), sampling_params=params)


class Decoding:
    """A batch that decodes while the block runs; `times` is when each step in which all of it took part was told."""

    def __init__(self, profiler: Profiler, size: int):
        self.times: list[float] = []
        self._size, self._executor = size, profiler.executor
        self._news = threading.Condition()
        self._num_open = size
        self._error: str | None = None
        self._requests = [profiler.request(PROMPT, MOST_STEPS, float(size > 1)) for _ in range(size)]

    def __enter__(self) -> Decoding:
        take = self._take  # one object, so that news of the same step comes in one call
        for request in self._requests:
            self._executor.enqueue_request(request, take)
        return self

    def __exit__(self, *exc: object) -> None:
        for request in self._requests:
            self._executor.cancel(request.request_id)
        with self._news:
            self._news.wait_for(lambda: not self._num_open, timeout=60)

    def wait(self, num_steps: int) -> None:
        with self._news:
            self._news.wait_for(lambda: len(self.times) >= num_steps or not self._num_open, timeout=60)
        if len(self.times) < num_steps:
            raise RuntimeError(f"{len(self.times)} of {num_steps} steps were made: {self._error or 'in a minute'}")

    def _take(self, outputs: list[Output]) -> None:
        with self._news:
            if len(outputs) == self._size:
                self.times.append(time.perf_counter())
            self._error = self._error or outputs[0].error
            self._num_open -= sum(output.finish_reason is not None for output in outputs)
            self._news.notify_all()


def print_table(title: str, record: dict[str, Any]) -> None:
    file = sys.stderr
    print(f"\n{title}: step {record['step_ms']} ms ({record['profiled_step_ms']} under the profiler), host "
          f"{record['host_ms']} ms, busy {100 * record['busy_share']:.1f} %, largest gap {record['largest_gap_us']} us",
          file=file)
    for part in ("groups", "kernels", "gaps"):
        print(f"  {part}", file=file)
        for name, total in list(record[part].items())[:16]:
            print(f"    {total['us']:10.1f} us {total['count']:8.1f} x  {name[:100]}", file=file, flush=True)


def run_case(name: str, batch_sizes: list[int], prompts: list[int], options: argparse.Namespace) -> list[dict]:
    profiler = Profiler(name, options)
    records = []
    with profiler.executor:
        # What is timed comes first: the profiler leaves hooks behind that launches pass through.
        timed = [("decode", size, profiler.decode_ms(size)) for size in batch_sizes]
        timed += [("prompt", num_tokens, profiler.prompt_ms(num_tokens)) for num_tokens in prompts]
        with profile(activities=[ProfilerActivity.CUDA]):
            torch.zeros(1, device="cuda")
        for part, number, times in timed:
            record = {"name": f"{name}.bf16.{part}.{number}", **times, **getattr(profiler, part)(number)}
            print_table(record["name"], record)
            records.append(record)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["llama-3.1-8b:1,64:8192"], metavar="SHAPE:BATCH_SIZES:PROMPTS")
    parser.add_argument("--max-batch-size", type=int, default=256)
    parser.add_argument("--max-num-tokens", type=int, default=8192)
    parser.add_argument("--output", help="also write the result to this file")
    options = parser.parse_args()
    records = []
    for case in options.cases:
        name, *numbers = case.split(":")
        batch_sizes, prompts = ([int(number) for number in part.split(",") if number] for part in numbers)
        records += run_case(name, batch_sizes, prompts, options)
        gc.collect()
        torch.cuda.empty_cache()
    print_json({"benchmark": "gpu_profile", "gpu": torch.cuda.get_device_name(), "records": records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
