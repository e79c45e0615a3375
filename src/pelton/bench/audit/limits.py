"""The hardware's limits for the served model, from what the result says about both."""

from __future__ import annotations

import msgspec

from pelton.bench.results import HardwareFacts
from pelton.config import ModelConfig
from pelton.errors import ConfigError
from pelton.physics import Roofline, find_hardware


def make_roofline(facts: HardwareFacts) -> Roofline:
    """The strict bound: what the last-level cache may hold comes free.

    Raises:
        ConfigError: no such GPU, or a model that this version does not know how to read.
    """
    try:
        model = msgspec.convert(facts.model, ModelConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the result's model cannot be read: {error}; give --model-config again") from None
    return Roofline(model=model, hardware=find_hardware(facts.gpu), weight_dtype=facts.weight_dtype,
                    kv_cache_dtype=facts.kv_cache_dtype, tp_size=facts.num_gpus, grant_cache=True)
