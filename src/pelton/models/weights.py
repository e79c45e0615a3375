"""The canonical tensors of a decoder and how they split over ranks and stages. Knows no tensors, only shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pelton.config import ModelConfig
from pelton.errors import ConfigError

Shard = Literal["rows", "columns", "none"]


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """One tensor as the decoder wants it: fused, named, with where it comes from and how it splits."""

    name: str
    """Canonical name, as "layers.3.qkv.weight"."""
    shape: tuple[int, ...]
    """Whole, before any split."""
    sources: tuple[str, ...]
    """Names in the Hugging Face checkpoint; concatenated along dim 0 in this order they make the whole."""
    parts: tuple[int, ...]
    """Rows of each logical part of dim 0 (q, k, v; gate, up); each splits on its own."""
    shard: Shard
    """What tensor parallelism splits: rows (dim 0), columns (dim 1), or nothing."""
    unit: int = 1
    """Rows (or columns) that must stay together: head_dim where heads are split."""
    layer: int | None = None
    stage: Literal["first", "last", "ends"] | None = None
    """For tensors outside the layers: the pipeline stage that holds it; ends is both (a tied embedding)."""

    def is_on_stage(self, *, layers: range, num_layers: int) -> bool:
        """Whether the pipeline stage that runs `layers` of `num_layers` needs this tensor."""
        if self.layer is not None:
            return self.layer in layers
        is_first, is_last = layers.start == 0, layers.stop == num_layers
        return {"first": is_first, "last": is_last, "ends": is_first or is_last}[self.stage or "ends"]

    def rank_ranges(self, *, tp_rank: int, tp_size: int) -> list[tuple[int, int]]:
        """The ranges [start, stop) along the split dim that a rank holds, concatenated in this order.

        Every part is cut into equal runs of whole units. Parts after the first with fewer units than ranks (key and
        value heads) are repeated: neighbouring ranks hold the same unit.

        Raises:
            ConfigError: a part does not divide evenly.
        """
        assert self.shard != "none"
        parts = self.parts if self.shard == "rows" else (self.shape[1],)
        ranges, start = [], 0
        for index, size in enumerate(parts):
            num_units = size // self.unit
            if num_units % tp_size == 0:
                first, count = tp_rank * (num_units // tp_size), num_units // tp_size
            elif index > 0 and tp_size % num_units == 0:
                first, count = tp_rank // (tp_size // num_units), 1
            else:
                raise ConfigError(f"tp_size must divide the {num_units} units of {self.name}, got {tp_size}")
            ranges.append((start + first * self.unit, start + (first + count) * self.unit))
            start += size
        return ranges

    def rank_shape(self, tp_size: int) -> tuple[int, ...]:
        """The shape one of `tp_size` ranks holds."""
        if self.shard == "none":
            return self.shape
        size = sum(stop - start for start, stop in self.rank_ranges(tp_rank=0, tp_size=tp_size))
        return (size, *self.shape[1:]) if self.shard == "rows" else (self.shape[0], size)


def stage_layers(num_layers: int, *, pp_rank: int, pp_size: int) -> range:
    """The layers of one pipeline stage: consecutive, as even as can be, the longer stages first.

    Raises:
        ConfigError: there are more stages than layers.
    """
    if pp_size > num_layers:
        raise ConfigError(f"pp_size must be at most the number of layers ({num_layers}), got {pp_size}")
    short, num_longer = divmod(num_layers, pp_size)
    start = pp_rank * short + min(pp_rank, num_longer)
    return range(start, start + short + (pp_rank < num_longer))


def decoder_weights(
    config: ModelConfig,
    *,
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj"),
) -> list[WeightSpec]:
    """The tensors of a decoder whose checkpoint uses the names that began with Llama's.

    Args:
        config: the model's shape; its flags say which biases and norms exist.
        qkv: modules under self_attn that hold q, k and v, fused or not.
        gate_up: modules under mlp that hold gate and up, fused or not.
    """
    c = config
    table = (c.vocab_size, c.hidden_size)
    specs = [WeightSpec(name="embed.weight", shape=table, sources=("model.embed_tokens.weight",), parts=table[:1],
                        shard="rows", stage="ends" if c.tie_word_embeddings else "first")]
    for layer in range(c.num_layers):
        specs += _attention_weights(c, layer, qkv) + _mlp_weights(c, layer, gate_up)
    specs.append(_norm("norm.weight", c.hidden_size, "model.norm.weight", stage="last"))
    if not c.tie_word_embeddings:
        specs.append(WeightSpec(name="head.weight", shape=table, sources=("lm_head.weight",), parts=table[:1],
                                shard="rows", stage="last"))
    return specs


def _norm(name: str, size: int, source: str, *, layer: int | None = None,
          stage: Literal["last"] | None = None) -> WeightSpec:
    return WeightSpec(name=name, shape=(size,), sources=(source,), parts=(size,), shard="none", layer=layer,
                      stage=stage)


def _attention_weights(c: ModelConfig, layer: int, modules: tuple[str, ...]) -> list[WeightSpec]:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    parts = (c.q_size, c.kv_size, c.kv_size)
    specs = [
        _norm(f"{ours}.attn_norm.weight", c.hidden_size, f"{theirs}.input_layernorm.weight", layer=layer),
        WeightSpec(name=f"{ours}.qkv.weight", shape=(sum(parts), c.hidden_size), parts=parts, shard="rows",
                   sources=tuple(f"{theirs}.self_attn.{m}.weight" for m in modules), unit=c.head_dim, layer=layer),
    ]
    if c.attention_bias:
        specs.append(WeightSpec(name=f"{ours}.qkv.bias", shape=(sum(parts),), parts=parts, shard="rows",
                                sources=tuple(f"{theirs}.self_attn.{m}.bias" for m in modules), unit=c.head_dim,
                                layer=layer))
    if c.qk_norm:
        specs += [_norm(f"{ours}.{m}.weight", c.head_dim, f"{theirs}.self_attn.{m}.weight", layer=layer)
                  for m in ("q_norm", "k_norm")]
    specs.append(WeightSpec(name=f"{ours}.o.weight", shape=(c.hidden_size, c.q_size), parts=(c.hidden_size,),
                            sources=(f"{theirs}.self_attn.o_proj.weight",), shard="columns", unit=c.head_dim,
                            layer=layer))
    if c.output_bias:
        specs.append(_norm(f"{ours}.o.bias", c.hidden_size, f"{theirs}.self_attn.o_proj.bias", layer=layer))
    return specs


def _mlp_weights(c: ModelConfig, layer: int, modules: tuple[str, ...]) -> list[WeightSpec]:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    parts = (c.intermediate_size, c.intermediate_size)
    mlp_norm = "post_attention_layernorm"
    specs = []
    if c.sandwich_norm:
        mlp_norm = "pre_feedforward_layernorm"
        specs.append(_norm(f"{ours}.attn_post_norm.weight", c.hidden_size,
                           f"{theirs}.post_attention_layernorm.weight", layer=layer))
    specs += [
        _norm(f"{ours}.mlp_norm.weight", c.hidden_size, f"{theirs}.{mlp_norm}.weight", layer=layer),
        WeightSpec(name=f"{ours}.gate_up.weight", shape=(sum(parts), c.hidden_size), parts=parts, shard="rows",
                   sources=tuple(f"{theirs}.mlp.{m}.weight" for m in modules), layer=layer),
    ]
    if c.mlp_bias:
        specs.append(WeightSpec(name=f"{ours}.gate_up.bias", shape=(sum(parts),), parts=parts, shard="rows",
                                sources=tuple(f"{theirs}.mlp.{m}.bias" for m in modules), layer=layer))
    specs.append(WeightSpec(name=f"{ours}.down.weight", shape=(c.hidden_size, c.intermediate_size),
                            parts=(c.hidden_size,), sources=(f"{theirs}.mlp.down_proj.weight",), shard="columns",
                            layer=layer))
    if c.mlp_bias:
        specs.append(_norm(f"{ours}.down.bias", c.hidden_size, f"{theirs}.mlp.down_proj.bias", layer=layer))
    if c.sandwich_norm:
        specs.append(_norm(f"{ours}.mlp_post_norm.weight", c.hidden_size,
                           f"{theirs}.post_feedforward_layernorm.weight", layer=layer))
    return specs
