"""What a loaded engine can do: the build's limits, narrowed by the configuration."""

from __future__ import annotations

import dataclasses

from pelton.config import ExecutorConfig
from pelton.errors import ConfigError
from pelton.manifest import Limits


def narrow(limits: Limits, config: ExecutorConfig) -> Limits:
    """The build's limits with the configuration's smaller ones in place.

    Raises:
        ConfigError: the configuration asks for more than was built.
    """
    changes = {}
    for name in ("max_batch_size", "max_num_tokens"):
        built, asked = getattr(limits, name), getattr(config, name)
        if asked is None:
            continue
        if asked > built:
            raise ConfigError(f"{name} must be at most {built}, which the engine was built for, got {asked}; build "
                              f"it with --{name.replace('_', '-')} {asked}")
        changes[name] = asked
    asked_tokens = config.kv_cache_config.tokens_per_block
    if asked_tokens not in (None, limits.tokens_per_block):
        raise ConfigError(f"kv_cache_config.tokens_per_block must be {limits.tokens_per_block}, which the engine was "
                          f"built for, got {asked_tokens}; build it with --tokens-per-block {asked_tokens}")
    return dataclasses.replace(limits, **changes)
