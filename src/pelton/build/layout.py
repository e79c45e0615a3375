"""What an engine will be, decided before a byte is written: types, device, memory. Knows no tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

from pelton.config import BuildConfig, Dtype, ModelConfig, ParallelConfig
from pelton.errors import ConfigError
from pelton.host import memory_bytes
from pelton.ledger import Ledger, predict_ledger
from pelton.models.weights import stage_layers
from pelton.physics import Hardware


def resolve_kv_dtype(options: BuildConfig, dtype: Dtype) -> Dtype:
    """The KV cache's type; auto follows the activations."""
    return dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype


def gpu_architecture(device: str) -> str:
    """"cpu", or the architecture of the first GPU, as "sm_90".

    Raises:
        ConfigError: a GPU is asked for and torch finds none.
    """
    if device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch finds no GPU; `pelton doctor` says why")
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def default_tuning(gpu: str) -> dict[str, Any]:
    """tuning.json without measurements: an empty list of choices leaves every op its default kernel."""
    reason = "no GPU" if gpu == "cpu" else "kernels were not measured"
    return {"is_tuned": False, "reason": reason, "gpu": gpu, "choices": []}


def engine_ledger(model: ModelConfig, options: BuildConfig, parallel: ParallelConfig, *, dtype: Dtype,
                  gpu: str) -> Ledger:
    """What one rank of the engine will need on this machine; with several stages, the longest.

    Two tables of the vocabulary count there although each stands on another stage, so it errs upwards.
    """
    longest = len(stage_layers(model.num_layers, pp_rank=0, pp_size=parallel.pp_size))
    stage = dataclasses.replace(model, num_layers=longest, layer_kinds=model.layer_kinds[:longest])
    return predict_ledger(stage, options, _device(gpu), weight_dtype=dtype,
                          kv_cache_dtype=resolve_kv_dtype(options, dtype), tp_size=parallel.tp_size)


def _device(gpu: str) -> Hardware:
    """This machine's memory; its speed does not enter a ledger and is not measured."""
    num_bytes = memory_bytes()
    if gpu != "cpu":
        import torch

        num_bytes = torch.cuda.get_device_properties(0).total_memory
    return Hardware(name=gpu, aliases=(), architecture=gpu, memory_bytes=num_bytes, cache_bytes=0, bandwidth=0.0,
                    flops={}, sources={"memory_bytes": "this machine's own figure"})
