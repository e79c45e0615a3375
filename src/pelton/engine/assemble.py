"""Puts scheduler, cache and runner together from an engine directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pelton.config import ExecutorConfig, RandomWeights
from pelton.engine.loop import EngineLoop
from pelton.models.rope import is_length_dependent, rope_salt
from pelton.runner.runner import Runner
from pelton.scheduler.scheduler import Scheduler


def make_loop(engine_dir: Path, config: ExecutorConfig) -> EngineLoop:
    """Loads the engine and makes its loop.

    Raises:
        EngineError: the directory is refused; ConfigError: the config asks for more than was built;
        CapacityError: it does not fit into memory.
    """
    return loop_over(Runner.from_engine(engine_dir, config), config)


def make_random_loop(model: str | Path, weights: RandomWeights, run: ExecutorConfig) -> EngineLoop:
    """The loop of a model whose weights are made up on the device: of its files only config.json is read.

    Args:
        model: a folder, a hub id or "pelton-tiny".

    Raises:
        ConfigError, CheckpointError: an option or the model is unusable. CapacityError: it does not fit into memory.
    """
    from pelton.build.limits import resolve_limits
    from pelton.checkpoint.hf_config import load_model_config
    from pelton.checkpoint.hub import resolve_config

    config = load_model_config(resolve_config(str(model)))
    if weights.build.dtype != "auto":
        config = dataclasses.replace(config, dtype=weights.build.dtype)
    limits = resolve_limits(weights.build, config)
    return loop_over(Runner.from_config(config, limits, run, seed=weights.seed), run)


def loop_over(runner: Runner, config: ExecutorConfig) -> EngineLoop:
    """A loop over a runner that is already loaded; the runner's limits are final."""
    rope = runner.model_config.rope
    by_length = is_length_dependent(rope)

    def kv_variant(num_prompt_tokens: int, max_total_tokens: int) -> str:
        return rope_salt(rope, num_prompt_tokens=num_prompt_tokens, max_total_tokens=max_total_tokens)

    scheduler = Scheduler(runner.limits, config, kv_variant=kv_variant if by_length else None)
    return EngineLoop(scheduler, runner, overlap=config.overlap, end_ids=runner.eos_ids)
