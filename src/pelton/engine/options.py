"""From a user's options to an engine directory and a run's config. Knows no tensors: the server process uses it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pelton.build.child import build_in_child
from pelton.build.limits import resolve_limits
from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, RandomWeights, from_dict
from pelton.errors import ConfigError
from pelton.host import first_gpu
from pelton.manifest import read_manifest
from pelton.runner.memory import refuse_too_large


def resolve_engine(model: str, options: dict[str, Any], *, in_child: bool = False) -> tuple[Path, ExecutorConfig]:
    """Finds the engine of a model, building it into the cache when there is none.

    Args:
        model: a Hugging Face id, a checkpoint directory, an engine directory, or "pelton-tiny".
        options: fields of BuildConfig and ExecutorConfig that the user set.
        in_child: build in another process, so that this one stays free of torch.

    Raises:
        ConfigError: an option is unknown, of the wrong type or out of range. CheckpointError, EngineError: the model
        is refused. CapacityError: the GPU has no room for it.
    """
    config, run = split_options(options)
    engine_dir = ensure_engine(model, config, device=run.device, builder=build_in_child if in_child else None)
    manifest, gpu = read_manifest(engine_dir), None if run.device == "cpu" else first_gpu()
    if gpu is not None and manifest.parallel.world_size == 1:
        refuse_too_large(manifest, run, gpu)  # now, as the process that loads it imports torch first
    return engine_dir, run


def resolve_random(model: str, options: dict[str, Any], *, seed: int = 0) -> tuple[Path, RandomWeights, ExecutorConfig]:
    """The folder of a model whose weights are to be made up, with what making and running them needs.

    Raises:
        ConfigError: as `resolve_engine`. CheckpointError: there is no such model, or it is not supported.
    """
    from pelton.checkpoint.hf_config import load_model_config
    from pelton.checkpoint.hub import resolve_config

    build, run = split_options(options)
    model_dir = resolve_config(model)
    resolve_limits(build, load_model_config(model_dir))  # what cannot be is refused before a process is started
    return model_dir, RandomWeights(seed=seed, build=build), run


def split_options(options: dict[str, Any]) -> tuple[BuildConfig, ExecutorConfig]:
    """Sorts options into what is fixed at build and how the engine runs.

    `max_batch_size` and `max_num_tokens` exist in both: they narrow the run, and widen the build only where its
    default is smaller, so that runs with different limits share one engine.

    Raises:
        ConfigError: an unknown option; the text lists the known ones.
    """
    build_defaults = {f.name: f.default for f in dataclasses.fields(BuildConfig)}
    run_names = {f.name for f in dataclasses.fields(ExecutorConfig)}
    unknown = sorted(set(options) - set(build_defaults) - run_names)
    if unknown:
        known = ", ".join(sorted(set(build_defaults) | run_names))
        raise ConfigError(f"unknown option {unknown[0]!r}; known are {known}")
    run = from_dict(ExecutorConfig, {name: value for name, value in options.items() if name in run_names})
    widened = {name: value for name, value in options.items() if name in build_defaults
               and not (name in run_names and (value is None or value <= build_defaults[name]))}
    if run.kv_cache_config.tokens_per_block is not None:
        widened.setdefault("tokens_per_block", run.kv_cache_config.tokens_per_block)
    return from_dict(BuildConfig, widened), run
