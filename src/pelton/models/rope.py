"""Reads rotary embedding parameters, in both spellings, and says what depends on a sequence's length. No tensors.

transformers 5 writes `rope_parameters`, perhaps nested by layer type; before that `rope_theta` and `rope_scaling`
stood apart, and the oldest files say `type` for `rope_type`.

Two scalings turn positions by an angle that depends on how long the sequence is:

* longrope has short and long factors. A sequence that may grow past the original length uses the long ones from its
  first token on, any other the short ones. Keys are cached rotated, so one sequence must not mix them.
* dynamic (NTK) is the plain embedding up to the original length. Past it, the whole prompt is rotated by the base
  that belongs to the prompt's length, each later token by the base of the length it makes.

Both are functions of the prompt's length and the length the sequence may reach, known at admission: `rope_length`.
Sequences that rotate equal prefixes differently must not share cached blocks: `rope_salt` tells them apart.
"""

from __future__ import annotations

import math
from typing import Any

from pelton.config import RopeConfig
from pelton.errors import CheckpointError

_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}


def parse_rope(hf: dict[str, Any], *, head_dim: int, default_max_positions: int,
               can_be_partial: bool = False) -> RopeConfig:
    """The rotary embedding of a Hugging Face config.

    Args:
        hf: config.json.
        head_dim: dimensions of one head.
        default_max_positions: context length where the config names none.
        can_be_partial: whether the architecture may rotate only the leading dimensions of a head.

    Raises:
        CheckpointError: an unknown kind, a missing or unusable parameter; the text names the field.
    """
    field, scaling = _parameters(hf)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise CheckpointError(f"{field}.rope_type: {kind!r} is not supported; supported are {', '.join(_NEEDED)}")
    for name in _NEEDED[kind]:
        if scaling.get(name) is None:
            raise CheckpointError(f"{field}.{name}: missing, and rope_type {kind!r} needs it")
    if scaling.get("mrope_section") is not None:
        raise CheckpointError(f"{field}.mrope_section: multimodal rotary embeddings are not supported")
    theta = _first(scaling.get("rope_theta"), hf.get("rope_theta"), 10000.0)
    share = _first(scaling.get("partial_rotary_factor"), hf.get("partial_rotary_factor"), 1.0)
    max_positions = _first(hf.get("max_position_embeddings"), default_max_positions)
    rotary_dim = int(head_dim * _number(share, f"{field}.partial_rotary_factor"))
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise CheckpointError(f"{field}.partial_rotary_factor: {share!r} of head_dim {head_dim} rotates {rotary_dim} "
                              "dimensions; it must be an even number of them")
    if rotary_dim != head_dim and not can_be_partial:
        raise CheckpointError(f"{field}.partial_rotary_factor: {share!r} is not supported for {hf['architectures'][0]}")
    options: dict[str, Any] = {"kind": kind, "theta": _number(theta, "rope_theta", above=1.0)}
    if rotary_dim != head_dim:
        options["rotary_dim"] = rotary_dim
    if kind == "dynamic":
        options["original_max_position_embeddings"] = max_positions
    elif kind in ("llama3", "yarn", "longrope"):
        original = _first(hf.get("original_max_position_embeddings"),
                          scaling.get("original_max_position_embeddings"), max_positions)
        original = int(_number(original, "original_max_position_embeddings", above=1.0))
        options["original_max_position_embeddings"] = original
        # The ratio of the context lengths is the factor where none is given, as for Phi-3.
        options["factor"] = float(max_positions) / original
    options |= _scaling_options(field, scaling, kind, rotary_dim)
    return RopeConfig(**options)


def _parameters(hf: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The one dict of rotary parameters and the field it stood in."""
    for field in ("rope_scaling", "rope_parameters"):
        value = hf.get(field)
        if not value:
            continue
        if not isinstance(value, dict):
            raise CheckpointError(f"{field}: expected an object, got {value!r}")
        layer_types = [key for key in value if key.endswith("_attention")]
        if not layer_types:
            return field, value
        used = [key for key in layer_types if key in (hf.get("layer_types") or layer_types) and value[key]]
        if any(value[key] != value[used[0]] for key in used):
            raise CheckpointError(f"{field}: different rotary embeddings per layer type ({', '.join(used)}) are not "
                                  "supported")
        if not used or not isinstance(value[used[0]], dict):
            raise CheckpointError(f"{field}: no parameters for the layer types of this model")
        return f"{field}.{used[0]}", value[used[0]]
    return "rope_parameters", {}


def _scaling_options(field: str, scaling: dict[str, Any], kind: str, rotary_dim: int) -> dict[str, Any]:
    """The parameters one kind of scaling reads; others in the file have no meaning for it."""
    names = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
        "longrope": ("factor", "attention_factor"),
    }.get(kind, ())
    options: dict[str, Any] = {}
    for name in names:
        # transformers takes a zero here for "not given"
        is_given = scaling.get(name) is not None and not (name in ("beta_fast", "beta_slow") and scaling[name] == 0)
        if is_given:
            options[name] = _number(scaling[name], f"{field}.{name}")
    if kind == "llama3" and options["high_freq_factor"] <= options["low_freq_factor"]:
        raise CheckpointError(f"{field}.high_freq_factor: must be above low_freq_factor "
                              f"({options['low_freq_factor']:g}), got {options['high_freq_factor']:g}")
    if kind == "yarn" and scaling.get("truncate") is not None:
        options["truncate"] = bool(scaling["truncate"])
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            value = scaling[name]
            if not isinstance(value, list) or len(value) != rotary_dim // 2:
                raise CheckpointError(f"{field}.{name}: expected {rotary_dim // 2} numbers (half the rotated "
                                      f"dimensions), got {len(value) if isinstance(value, list) else value!r}")
            options[name] = tuple(_number(v, f"{field}.{name}") for v in value)
    return options


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _number(value: Any, field: str, *, above: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        raise CheckpointError(f"{field}: expected a number above {above:g}, got {value!r}")
    return float(value)


def is_length_dependent(rope: RopeConfig) -> bool:
    """Whether rotation depends on the sequence's length, so that a step must be told `rope_length` per token."""
    return rope.kind in ("dynamic", "longrope")


def rope_length(rope: RopeConfig, position: int, *, num_prompt_tokens: int, max_total_tokens: int) -> int:
    """The length that sets the rotation of one token; the same however the prompt is cut into chunks.

    Args:
        rope: the model's rotary embedding.
        position: index of the token in its sequence.
        num_prompt_tokens: length of the prompt as the request gave it, without tokens generated before a preemption.
        max_total_tokens: prompt plus the most tokens the request may generate.
    """
    if rope.kind == "dynamic":
        return max(num_prompt_tokens, position + 1)
    return max_total_tokens


def rope_salt(rope: RopeConfig, *, num_prompt_tokens: int, max_total_tokens: int) -> str:
    """What must go into the prefix keys of a sequence beside its tokens; empty where rotation is as usual."""
    original = rope.original_max_position_embeddings or 0
    if rope.kind == "longrope" and max_total_tokens > original:
        return "rope:long"
    if rope.kind == "dynamic" and num_prompt_tokens > original:
        return f"rope:{num_prompt_tokens}"
    return ""
