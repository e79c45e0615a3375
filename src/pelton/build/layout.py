"""What an engine will be, decided before a byte is written: types, device, memory. Knows no tensors."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pelton.config import BuildConfig, Dtype, ModelConfig, ParallelConfig
from pelton.errors import ConfigError
from pelton.host import Gpu, first_gpu, memory_bytes
from pelton.ledger import Ledger, fit_choices, in_words, predict_ledger, resolve_max_seq_len, what_would_fit
from pelton.models.weights import stage_layers
from pelton.physics import Hardware

Device = Literal["auto", "cpu", "cuda"]
Tuning = Literal["auto", "again", "off"]


def resolve_kv_dtype(options: BuildConfig, dtype: Dtype) -> Dtype:
    """The KV cache's type; auto follows the activations."""
    return dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype


def find_gpu(device: Device) -> Gpu | None:
    """The GPU that an engine is built on and for; None: a CPU.

    Raises:
        ConfigError: a GPU is asked for and there is none that torch can use.
    """
    gpu = None if device == "cpu" else first_gpu()
    if gpu is None and device == "cuda":
        raise ConfigError("device: cuda was asked for, but there is no GPU that torch can use; `pelton doctor` says "
                          "why")
    return gpu


def architecture(gpu: Gpu | None) -> str:
    """As in the manifest: "sm_90", or "cpu"."""
    return "cpu" if gpu is None else gpu.architecture


def untuned(gpu: Gpu | None) -> dict[str, Any]:
    """tuning.json without measurements: an empty list of choices leaves every op its built-in kernel."""
    reason = "no GPU" if gpu is None else "kernels were not measured"
    return {"is_tuned": False, "reason": reason, "gpu": architecture(gpu), "choices": []}


def engine_ledger(model: ModelConfig, options: BuildConfig, parallel: ParallelConfig, *, dtype: Dtype,
                  gpu: Gpu | None) -> Ledger:
    """What one rank of the engine will need on this machine; with several stages, the longest.

    Two tables of the vocabulary count there although each stands on another stage, so it errs upwards.

    Raises:
        CapacityError: one sequence of max_seq_len does not fit the GPU; the text says what would. Without a GPU
            nothing is refused: the engine may be meant for another machine.
    """
    longest = len(stage_layers(model.num_layers, pp_rank=0, pp_size=parallel.pp_size))
    stage = dataclasses.replace(model, num_layers=longest, layer_kinds=model.layer_kinds[:longest])

    def ledger_of(*, weight_dtype: str = dtype, tp_size: int = parallel.tp_size, **change: Any) -> Ledger:
        return predict_ledger(stage, dataclasses.replace(options, **change), _device(gpu), weight_dtype=weight_dtype,
                              kv_cache_dtype=resolve_kv_dtype(options, dtype), tp_size=tp_size)

    ledger = ledger_of()
    if gpu is not None:
        choices = fit_choices(stage, options)
        choices["tp_size"] = [size for size in choices["tp_size"] if size > parallel.tp_size]
        ledger.require_fit(resolve_max_seq_len(stage, options),
                           lambda: in_words(what_would_fit(stage, options, ledger_of, choices)))
    return ledger


def _device(gpu: Gpu | None) -> Hardware:
    """This machine's memory; its speed does not enter a ledger and is not measured."""
    num_bytes = memory_bytes() if gpu is None else gpu.memory_bytes
    return Hardware(name=architecture(gpu), aliases=(), architecture=architecture(gpu), memory_bytes=num_bytes,
                    cache_bytes=0, bandwidth=0.0, flops={}, sources={"memory_bytes": "this machine's own figure"})
