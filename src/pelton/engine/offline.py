"""Offline drivers: an engine in this process, token ids in, wall times out. They judge nothing; bench does."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pelton.config import RandomWeights
from pelton.engine.executor import Executor
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
    output_dir: str | None = None
    """Directory for results.json, requests.csv, cells.csv and report.html; none: only print."""
    json: bool = False
    """Print JSON in place of the table."""
    strict: bool = False
    """End with status 3 when the audit fails a batch size."""

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise ConfigError("batch_sizes must name at least one size, such as 1,4,8")
        for name in ("input_len", "output_len", "num_runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.batch_sizes) < 1 or self.warmup_runs < 0:
            raise ConfigError("batch_sizes must be at least 1 each and warmup_runs at least 0")


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(ThroughputOptions):
    """`pelton bench latency`: as throughput, with few requests at a time and more runs."""

    batch_sizes: tuple[int, ...] = (1,)
    """Requests queued at once, one table row each."""
    num_runs: int = 10
    """Measured runs per batch size."""


@dataclass
class OfflineRequest:
    """One request of a run as this process saw it. Stamps are of `time.perf_counter_ns`."""

    sent_ns: int
    token_ns: list[int] = field(default_factory=list)
    """Arrival of each piece of news with tokens."""
    num_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class OfflineRun:
    """One run of one batch size: equal requests, all queued at once."""

    batch_size: int
    input_len: int
    output_len: int
    is_warmup: bool
    trial: int
    """Which measured run, from 0; of a warm-up run 0."""
    requests: list[OfflineRequest]
    end_ns: int
    step_host_ms: float
    """Median Python time of the step loop over recent steps."""
    vocab_size: int
    """No two prompts of a call begin with the same token while the vocabulary lasts."""


def measure_throughput(options: ThroughputOptions, engine_options: dict[str, Any]) -> list[OfflineRun]:
    """Runs every batch size on one loaded engine, warm-up first.

    Raises:
        ConfigError: the lengths or batch sizes do not fit the engine. PeltonError: it could not be loaded.
    """
    with _open(options, engine_options) as executor:
        limits = executor.loop.scheduler.limits
        if options.input_len > limits.max_input_len or options.input_len + options.output_len > limits.max_seq_len:
            raise ConfigError(f"input_len + output_len is {options.input_len + options.output_len}; this engine takes "
                              f"{limits.max_input_len} in and {limits.max_seq_len} in all")
        draw = random.Random(options.seed)
        prompts = _prompts(options.input_len, limits.vocab_size, draw)
        return [run for size in options.batch_sizes for run in _measure(executor, size, options, prompts)]


def _open(options: ThroughputOptions, engine_options: dict[str, Any]) -> Executor:
    if options.random_weights:
        from pelton.engine.assemble import make_random_loop

        build, run = split_options(engine_options)
        return Executor(make_random_loop(options.model, RandomWeights(seed=options.seed, build=build), run))
    return Executor(*resolve_engine(options.model, engine_options))


def _prompts(num_tokens: int, vocab_size: int, draw: random.Random) -> Iterator[list[int]]:
    """Random prompts without end; their first tokens are a random order of the vocabulary, again and again."""
    for first in itertools.cycle(draw.sample(range(vocab_size), vocab_size)):
        yield [first, *(draw.randrange(vocab_size) for _ in range(num_tokens - 1))]


def _measure(executor: Executor, size: int, options: ThroughputOptions,
             prompts: Iterator[list[int]]) -> Iterator[OfflineRun]:
    params = SamplingParams(max_tokens=options.output_len, ignore_eos=True, temperature=0.0, detokenize=False)
    for number in range(-options.warmup_runs, options.num_runs):
        batch = [Request(ids, sampling_params=params) for ids in itertools.islice(prompts, size)]
        requests, end_ns = run_stamped(executor, batch)
        yield OfflineRun(size, options.input_len, options.output_len, is_warmup=number < 0, trial=max(number, 0),
                         requests=requests, end_ns=end_ns, step_host_ms=executor.stats().step_host_ms,
                         vocab_size=executor.loop.scheduler.limits.vocab_size)


def run_stamped(executor: Executor, requests: list[Request]) -> tuple[list[OfflineRequest], int]:
    """Queues all requests at once and stamps their tokens as they come back; returns them and the end.

    Raises:
        PeltonError: the engine could not run one of them.
    """
    began = time.perf_counter_ns()
    found = {request.request_id: OfflineRequest(began) for request in requests}

    def take(output: Output) -> None:
        request = found[output.request_id]
        if output.token_ids:
            request.token_ns.append(time.perf_counter_ns())
            request.num_tokens += len(output.token_ids)
        request.num_cached_tokens = max(request.num_cached_tokens, output.num_cached_tokens)
        request.finish_reason = output.finish_reason or request.finish_reason

    executor.run(requests, take)
    return list(found.values()), time.perf_counter_ns()


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
