"""Typed access to a Hugging Face config.json: every wrong or unsupported field becomes one clear line."""

from __future__ import annotations

import math
from typing import Any

from pelton.config import DTYPE_BYTES, ModelConfig
from pelton.errors import CheckpointError, ConfigError
from pelton.models.rope import parse_rope

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_MAX_LAYERS = 10_000
"""Far above any model, so that a damaged file is refused before lists of its layers fill the memory."""


class Fields:
    """A config.json whose fields are read by name and type.

    A missing field and null are the same. The defaults are those of transformers' config classes, because a config
    saved there may leave out what equals them.
    """

    def __init__(self, hf: dict[str, Any]):
        self.hf = hf
        if hf.get("quantization_config") is not None:
            raise CheckpointError("quantization_config: quantized checkpoints are not supported; use the original one")

    def count(self, name: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A positive integer."""
        value = self._given(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise CheckpointError(f"{name}: expected a positive integer of at most {most} in config.json, "
                                  f"got {value!r}")
        return value

    @property
    def num_layers(self) -> int:
        return self.count("num_hidden_layers", most=_MAX_LAYERS)

    def optional_count(self, name: str, default: int | None = None) -> int | None:
        """A positive integer or None; here a null overrides the default."""
        if self.hf.get(name, default) is None:
            return None
        return self.count(name, default)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite, positive number."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{name}: expected a positive number in config.json, got {value!r}")
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """A positive number or None; here a null overrides the default."""
        return None if self.hf.get(name, default) is None else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{name}: expected true or false in config.json, got {value!r}")
        return value

    def refuse(self, name: str, *, unless: tuple[Any, ...] = (None, False)) -> None:
        """Refuses an option that would change the result."""
        value = self.hf.get(name)
        if value not in unless:
            raise CheckpointError(f"{name}: {value!r} is not supported for {self.hf['architectures'][0]}")

    def activation(self, name: str, default: str) -> str:
        value = self._given(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise CheckpointError(f"{name}: activation {value!r} is not supported; supported are "
                                  f"{', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def dtype(self) -> str:
        """`dtype`, or `torch_dtype` as transformers before version 5 spelt it; float32 when neither is there."""
        name = "torch_dtype" if self.hf.get("dtype") is None else "dtype"
        value = self.hf.get(name) or "float32"
        value = value.removeprefix("torch.") if isinstance(value, str) else value
        if value not in ("float32", "bfloat16", "float16"):
            raise CheckpointError(f"{name}: {value!r} is not supported; supported are float32, bfloat16, float16")
        assert value in DTYPE_BYTES
        return value

    def layer_types(self, default: list[str]) -> tuple[str, ...]:
        """The attention of each layer as our layer kinds, from `layer_types` or what the architecture implies."""
        types = self._given("layer_types", default)
        num_layers = self.num_layers
        if not isinstance(types, list) or len(types) != num_layers:
            raise CheckpointError(f"layer_types: expected a list of {num_layers} (num_hidden_layers) entries, "
                                  f"got {types!r}")
        kinds = {"full_attention": "full", "sliding_attention": "sliding"}
        for kind in types:
            if kind not in kinds:
                raise CheckpointError(f"layer_types: {kind!r} is not supported; supported are {', '.join(kinds)}")
        return tuple(kinds[kind] for kind in types)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id, a list of them, or none."""
        value = self.hf.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise CheckpointError(f"{name}: expected a token id or a list of them, got {value!r}")
        return tuple(i for i in ids if i >= 0)

    def _given(self, name: str, default: Any) -> Any:
        value = self.hf.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{name}: missing from config.json")
        return value


def decoder_config(fields: Fields, *, max_positions: int, norm_eps: float = 1e-6, kv_heads: int | None = None,
                   head_dim: int | None = None, tied: bool = False, can_be_partial: bool = False,
                   activation: tuple[str, str] = ("hidden_act", "silu"), sliding_window: int | None = None,
                   layer_kinds: tuple[str, ...] = (), **special: Any) -> ModelConfig:
    """A ModelConfig from the fields that all supported architectures share.

    Args:
        fields: the config.json.
        max_positions, norm_eps, kv_heads, head_dim, tied: what holds when the config is silent; for kv_heads
            and head_dim None means one per query head and hidden_size / num_heads.
        can_be_partial: whether part of a head may go unrotated.
        activation: the field that names the activation, and its default.
        sliding_window, layer_kinds, special: passed on to ModelConfig.

    Raises:
        CheckpointError: a field is missing, wrong or unsupported.
    """
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if fields.hf.get("head_dim") is None and head_dim is None and hidden_size % num_heads:
        raise CheckpointError(f"hidden_size: {hidden_size} is not a multiple of num_attention_heads ({num_heads}) "
                              "and config.json gives no head_dim")
    head_dim = fields.count("head_dim", head_dim or hidden_size // num_heads)
    bos = fields.token_ids("bos_token_id")
    try:
        return ModelConfig(
            architecture=fields.hf["architectures"][0],
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=fields.num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.count("num_key_value_heads", kv_heads or num_heads),
            head_dim=head_dim,
            max_position_embeddings=fields.count("max_position_embeddings", max_positions),
            rope=parse_rope(fields.hf, head_dim=head_dim, default_max_positions=max_positions,
                            can_be_partial=can_be_partial),
            norm_eps=fields.number("rms_norm_eps", norm_eps),
            activation=fields.activation(*activation),
            tie_word_embeddings=fields.flag("tie_word_embeddings", tied),
            sliding_window=sliding_window,
            layer_kinds=layer_kinds,
            dtype=fields.dtype(),
            bos_id=bos[0] if bos else None,
            eos_ids=fields.token_ids("eos_token_id"),
            **special,
        )
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None
