"""Finds the implementation of each op for a device, importing only what is asked for.

An op is a folder here. `reference.py` in it is plain torch, slow and obvious: the oracle of the tests and what runs
where nothing faster exists. The modules beside it (cpu.py, triton.py) offer the same functions with the same
arguments, so layers and models never see which one runs. The functions of each op:

    linear      prepare_weight(weight) -> prepared;
                linear(x, prepared, bias, norm, act, residual, out_dtype) -> residual + act(norm(x) Wᵀ + bias);
                prepared_bytes(num_elements, dtype) -> int;  is_relaid(dtype) -> bool
    norm        prepare_weight(weight, offset) -> prepared;  rms_norm(x, prepared, eps) -> y;
                add_rms_norm(x, residual, prepared, eps) -> (y, x + residual)
    rotary      prepare_angles(cos, sin) -> angles, once per step;
                rotate_and_store(qkv, angles, pool, layer, meta, ...) -> (q, kv)
    activation  act_mul(gate_up, kind) -> y
    attention   plan(meta, pool, ...) -> plan, once per step and window;
                attend(q, kv, pool, layer, plan, ...) -> out;
                rotate_and_attend(qkv, angles, pool, layer, plan, ...) -> out: rotate_and_store and attend
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

OPS = ("linear", "norm", "rotary", "activation", "attention")
_MODULES = {
    "reference": dict.fromkeys(OPS, "reference"),
    "cpu": dict.fromkeys(OPS, "cpu"),
    "cuda": dict.fromkeys(OPS, "triton"),
}


@dataclass(frozen=True)
class Ops:
    """One implementation of every op."""

    linear: ModuleType
    norm: ModuleType
    rotary: ModuleType
    activation: ModuleType
    attention: ModuleType


def load_ops(implementation: str) -> Ops:
    """The ops of an implementation: a device type (cpu, cuda), or reference for the oracle of each."""
    assert implementation in _MODULES, implementation
    return Ops(**{op: import_module(f"pelton.kernels.{op}.{file}") for op, file in _MODULES[implementation].items()})
