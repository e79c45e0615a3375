"""What the host adds to a short prompt's time on a GPU, and whether launching a step ever waits for the device.

    python benchmarks/gpu_host.py qwen2.5-7b --prompts 129,544,914 --output results/nvidia-h200/X.json

- prompt.N: one prompt at a time, with a pause between, as at 1 in flight: milliseconds from the request queued until
  the runner is called, until its inputs are on their way, from then until the token is drawn (the GPU's own clock),
  from then until the host has it, and in all; medians. `back_to_back` is all without a pause, when a GPU that computes
  without end may have to slow down.
- launch.N: `Runner.forward` called at numbers of tokens that the process has not run, one after the other, with the GPU
  kept busy for some 30 ms before each. A call that waits for the device takes longer than that; beside each slow one
  stands what torch asked of the driver meanwhile, and where the call was how long, looked up every millisecond; for
  the quick ones that is told together. The second round has numbers between those of the first. With
  CUDA_MODULE_LOADING=EAGER the driver loads kernels at the start; cuBLAS loads its own when they are first used anyway.

Weights are made up. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from common import environment, print_json

import pelton
from pelton.build.limits import resolve_limits
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.runner import runner as runner_module
from pelton.runner.runner import Runner, Step
from pelton.types import Batch, Request, SamplingParams, SlotInit

PACKAGE = str(Path(pelton.__file__).parent)
SHAPES = Path(__file__).parent / "shapes"
NUM_PROMPTS, PAUSE_S = 12, 0.05
BUSY_CYCLES = 60_000_000
SLOW_MS = 12.0
LOOK_S = 0.001
PLACES_SHOWN = 8


class Marks:
    """When a step's stages were reached, in seconds of this process and on the GPU's clock."""

    def __init__(self, runner: Runner):
        self.is_gpu = torch.cuda.is_available()
        self._at: dict[str, float] = {}
        self._events: list[Any] = []
        runner.forward = self._before("forward", runner.forward)
        Step.result = self._after("result", Step.result)
        if self.is_gpu:
            staging = runner._slots.staging
            staging.write_into = self._before("copy", staging.write_into, has_event=True)
            runner_module.draw = self._after("draw", runner_module.draw, has_event=True)

    def clear(self) -> None:
        self._at.clear()
        self._events.clear()

    def stages(self, began: float, ended: float) -> dict[str, float]:
        """Milliseconds of each stage of the step since `clear`."""
        at, stages = self._at, {"to_forward": 1e3 * (self._at["forward"] - began)}
        if self.is_gpu:
            torch.cuda.synchronize()
            gpu = self._events[0].elapsed_time(self._events[1])
            stages |= {"to_copy": 1e3 * (at["copy"] - began), "gpu": gpu,
                       "to_host": 1e3 * (at["result"] - at["copy"]) - gpu}
        return {**stages, "all": 1e3 * (ended - began)}

    def _before(self, name: str, inner: Any, *, has_event: bool = False) -> Any:
        def call(*args: Any) -> Any:
            self._note(name, has_event)
            return inner(*args)

        return call

    def _after(self, name: str, inner: Any, *, has_event: bool = False) -> Any:
        def call(*args: Any) -> Any:
            result = inner(*args)
            self._note(name, has_event)
            return result

        return call

    def _note(self, name: str, has_event: bool) -> None:
        if name in self._at:
            return
        self._at[name] = time.perf_counter()
        if has_event:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()


class Watch:
    """Where the thread that made it is while the block runs, looked up about every millisecond by another thread."""

    def __init__(self):
        self._caller = threading.get_ident()
        self._is_on = threading.Event()
        self._last = 0.0
        self._ms: Counter[str] = Counter()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def __enter__(self) -> Watch:
        self._ms.clear()
        self._last = time.perf_counter()
        self._is_on.set()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_on.clear()

    def places(self) -> Counter[str]:
        """Milliseconds by place. A call that keeps the interpreter's lock is charged to the place where it is first
        seen again."""
        return self._ms.copy()

    def _run(self) -> None:
        while self._is_on.wait():
            frame = sys._current_frames().get(self._caller)
            now = time.perf_counter()
            if frame is not None and self._is_on.is_set():
                self._ms[place_of(frame)] += 1e3 * (now - self._last)
                self._last = now
            del frame
            time.sleep(LOOK_S)


def longest(places: Counter[str], *, num_calls: int = 1) -> dict[str, float]:
    """Milliseconds a call of the places with most of them."""
    return {place: round(ms / num_calls, 2) for place, ms in places.most_common(PLACES_SHOWN)}


def place_of(frame: FrameType) -> str:
    """The innermost function, and Pelton's line behind it where it is another's."""
    here = _line(frame)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    ours = _line(frame)
    return here if ours == here else f"{here}, called at {ours}"


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


class Bench:
    """One model with made-up weights."""

    def __init__(self, shape: Path, max_num_tokens: int):
        self.config = load_model_config(shape)
        build = BuildConfig(max_num_tokens=max_num_tokens, max_seq_len=min(16384, self.config.context_len))
        run = ExecutorConfig(kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        began = time.perf_counter()
        self.runner = Runner.from_config(self.config, resolve_limits(build, self.config), run)
        self.ready_s = time.perf_counter() - began
        self.marks = Marks(self.runner)
        self.executor = Executor(loop_over(self.runner, run))
        self._draw = random.Random(0)

    def prompt(self, num_tokens: int) -> dict[str, Any]:
        stages = [self._one(num_tokens, PAUSE_S) for _ in range(NUM_PROMPTS)][2:]
        medians = {name: round(statistics.median(each[name] for each in stages), 3) for name in stages[0]}
        close = [self._one(num_tokens, 0.0)["all"] for _ in range(NUM_PROMPTS)][2:]
        return {"name": f"prompt.{num_tokens}", "unit": "ms", **medians,
                "back_to_back": round(statistics.median(close), 3)}

    def _one(self, num_tokens: int, pause_s: float) -> dict[str, float]:
        time.sleep(pause_s)
        self.marks.clear()
        done = threading.Event()
        params = SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0, detokenize=False)
        request = Request(self._draw.choices(range(self.config.vocab_size), k=num_tokens), sampling_params=params)
        began = time.perf_counter()
        self.executor.enqueue_request(request, lambda outputs: done.set())
        done.wait()
        return self.marks.stages(began, time.perf_counter())

    def launches(self, num_steps: int) -> list[dict[str, Any]]:
        """Both rounds; the executor must be idle, and is not used again."""
        taken = self.runner._slots.is_taken
        self.runner.forget([slot for slot in range(len(taken)) if taken[slot]])
        self._watch = Watch()
        most = min(self.runner.limits.max_num_tokens, self.runner.limits.max_seq_len - 2, 4096)
        counts = self._draw.sample(range(most // 4 + 1, most), 2 * num_steps)
        return [self._launch_round(f"launch.{title}", part)
                for title, part in (("new", counts[:num_steps]), ("others", counts[num_steps:]))]

    def _launch_round(self, name: str, counts: list[int]) -> dict[str, Any]:
        steps = {num_tokens: self._launch(num_tokens) for num_tokens in counts}
        times = [step["ms"] for step in steps.values()]
        quick = [step for step in steps.values() if step["ms"] <= SLOW_MS]
        slow = {str(count): {**step, "where": longest(step["where"])}
                for count, step in steps.items() if step["ms"] > SLOW_MS}
        record = {"name": name, "unit": "ms", "num_steps": len(counts), "median": round(statistics.median(times), 2),
                  "max": max(times), "slow": slow}
        if quick:
            where = sum((step["where"] for step in quick), Counter())
            record["quick"] = {"median": round(statistics.median(step["ms"] for step in quick), 2),
                               "where": longest(where, num_calls=len(quick))}
        return record

    def _launch(self, num_tokens: int) -> dict[str, Any]:
        runner, is_gpu = self.runner, self.marks.is_gpu
        num_blocks = num_tokens // runner.limits.tokens_per_block + 1
        init = SlotInit(0, [0] * num_tokens, num_tokens, list(range(num_blocks)), SamplingParams(), 0, ())
        before = _driver_calls()
        if is_gpu:
            torch.cuda.synchronize()
            with torch.cuda.stream(runner._queue.stream):
                torch.cuda._sleep(BUSY_CYCLES)
        with self._watch as watch:
            began = time.perf_counter()
            step = runner.forward(Batch(0, [0], [0], [num_tokens], [True], 0, [init], [], []))
            ms = 1e3 * (time.perf_counter() - began)
        runner.sample(step, None)
        step.result()
        runner.forget([0])
        after = _driver_calls()
        return {"ms": round(ms, 2), **{name: after[name] - before[name] for name in after}, "where": watch.places()}


def _driver_calls() -> dict[str, int]:
    """How often torch has asked for memory of the device, and of the host for the device, so far."""
    if not torch.cuda.is_available():
        return {}
    return {"device_allocations": torch.cuda.memory_stats().get("num_device_alloc", 0),
            "host_allocations": torch.cuda.host_memory_stats().get("num_host_alloc", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="qwen2.5-7b", help="of benchmarks/shapes, or a folder with config")
    parser.add_argument("--prompts", default="129,544,914", help="may be empty")
    parser.add_argument("--num-steps", type=int, default=16, help="of each round of launches")
    parser.add_argument("--max-num-tokens", type=int, default=8192)
    parser.add_argument("--output", help="also write the result to this file")
    options = parser.parse_args()
    shape = SHAPES / options.shape
    bench = Bench(shape if shape.exists() else Path(options.shape), options.max_num_tokens)
    records = [{"name": "ready", "unit": "s", "value": round(bench.ready_s, 2)}]
    for num_tokens in map(int, filter(None, options.prompts.split(","))):
        records.append(bench.prompt(num_tokens))
        print(records[-1], file=sys.stderr, flush=True)
    records += bench.launches(options.num_steps)
    print(*records[-2:], sep="\n", file=sys.stderr, flush=True)
    bench.executor.shutdown()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print_json({"benchmark": "gpu_host", "gpu": gpu, "module_loading": os.environ.get("CUDA_MODULE_LOADING", "LAZY"),
                "records": records, "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
