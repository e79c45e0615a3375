"""Offline drivers: an engine in this process, token ids in, wall times out. They judge nothing; bench does."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from pelton.config import RandomWeights
from pelton.engine.executor import Executor
from pelton.engine.messages import Stats
from pelton.engine.options import resolve_engine, split_options
from pelton.errors import ConfigError
from pelton.types import Output, Request, SamplingParams


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """`pelton bench throughput`."""

    model: str = "pelton-tiny"
    """Engine directory, checkpoint or hub id."""
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    """Requests queued at once, one table row each."""
    input_len: int = 128
    """Prompt tokens of each request."""
    output_len: int = 128
    """Output tokens of each request."""
    num_runs: int = 3
    """Measured runs per batch size."""
    warmup_runs: int = 1
    """Unmeasured runs before them."""
    seed: int = 0
    """Seed of the random prompts; no two prompts of one call are alike."""
    random_weights: bool = False
    """Make weights up on the device from the model's config.json, the only file that is read."""
    output: str | None = None
    """JSON file to write; none: only print."""
    json: bool = False
    """Print JSON in place of the table."""

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise ConfigError("batch_sizes must name at least one size, such as 1,4,8")
        for name in ("input_len", "output_len", "num_runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.batch_sizes) < 1 or self.warmup_runs < 0:
            raise ConfigError("batch_sizes must be at least 1 each and warmup_runs at least 0")


@dataclass(frozen=True)
class ThroughputRun:
    """All measured runs of one batch size."""

    batch_size: int
    input_len: int
    output_len: int
    wall_s: list[float]
    """From the first request queued to the last token, one per run."""
    num_output_tokens: list[int]
    """Tokens that came back, one count per run."""
    num_cached_tokens: int
    """Prompt tokens that did not have to be computed, over all measured runs; distinct prompts make it 0."""
    step_host_ms: float
    """Median Python time of the step loop over recent steps."""


def measure_throughput(options: ThroughputOptions, engine_options: dict[str, Any]) -> list[ThroughputRun]:
    """Runs every batch size on one loaded engine.

    Raises:
        ConfigError: the lengths or batch sizes do not fit the engine. PeltonError: it could not be loaded.
    """
    with _open(options, engine_options) as executor:
        limits = executor.loop.scheduler.limits
        if options.input_len > limits.max_input_len or options.input_len + options.output_len > limits.max_seq_len:
            raise ConfigError(f"input_len + output_len is {options.input_len + options.output_len}; this engine takes "
                              f"{limits.max_input_len} in and {limits.max_seq_len} in all")
        draw = random.Random(options.seed)
        return [_measure(executor, size, options, draw) for size in options.batch_sizes]


def _open(options: ThroughputOptions, engine_options: dict[str, Any]) -> Executor:
    if options.random_weights:
        from pelton.engine.assemble import make_random_loop

        build, run = split_options(engine_options)
        return Executor(make_random_loop(options.model, RandomWeights(seed=options.seed, build=build), run))
    return Executor(*resolve_engine(options.model, engine_options))


def _measure(executor: Executor, size: int, options: ThroughputOptions, draw: random.Random) -> ThroughputRun:
    vocab = executor.loop.scheduler.limits.vocab_size
    params = SamplingParams(max_tokens=options.output_len, ignore_eos=True, temperature=0.0, detokenize=False)
    walls: list[float] = []
    counts: list[int] = []
    before = executor.stats()
    for run in range(options.warmup_runs + options.num_runs):
        prompts = [[draw.randrange(vocab) for _ in range(options.input_len)] for _ in range(size)]
        if run == options.warmup_runs:
            before = executor.stats()
        wall, count = run_requests(executor, [Request(ids, sampling_params=params) for ids in prompts])
        if run >= options.warmup_runs:
            walls.append(wall)
            counts.append(count)
    after: Stats = executor.stats()
    return ThroughputRun(size, options.input_len, options.output_len, walls, counts,
                         after.num_cached_tokens - before.num_cached_tokens, after.step_host_ms)


def run_requests(executor: Executor, requests: list[Request]) -> tuple[float, int]:
    """Queues all requests at once; returns seconds until the last has ended and the output tokens counted.

    Raises:
        PeltonError: the engine could not run one of them.
    """
    num_tokens = 0

    def take(output: Output) -> None:
        nonlocal num_tokens
        num_tokens += len(output.token_ids)

    began = time.perf_counter()
    executor.run(requests, take)
    return time.perf_counter() - began, num_tokens
