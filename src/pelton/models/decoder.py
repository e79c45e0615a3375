"""A decoder-only transformer, assembled from layers as its ModelConfig says. All supported architectures run here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pelton.cache.pool import KvPool
from pelton.config import ModelConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.registry import Ops, load_ops
from pelton.layers.attention import Attention
from pelton.layers.linear import Embedding, Head
from pelton.layers.mlp import GatedMlp
from pelton.layers.norm import RMSNorm
from pelton.layers.rotary import RotaryEmbedding
from pelton.layers.step import ForwardStep
from pelton.layers.weights import WeightSource
from pelton.models.rope import is_length_dependent
from pelton.models.weights import decoder_weights
from pelton.parallel.collectives import Group, SingleRank


def resident_bytes(config: ModelConfig, dtype: torch.dtype, *, implementation: str) -> int:
    """Memory that a whole model's weights take once a Decoder holds them, in the layouts of its kernels.

    Args:
        config: the model's shape.
        dtype: of the weights as they are handed over.
        implementation: as the Decoder's; a device type names its default.
    """
    linear = load_ops(implementation).linear
    total = 0
    for spec in decoder_weights(config):
        num_elements = math.prod(spec.shape)
        is_matrix = len(spec.shape) == 2
        if is_matrix and spec.name != "embed.weight":
            total += linear.prepared_bytes(num_elements, dtype)
            continue
        total += num_elements * dtype.itemsize
        # A tied head needs its own copy where the kernel's layout is not the embedding's.
        if spec.name == "embed.weight" and config.tie_word_embeddings and linear.is_relaid(dtype):
            total += linear.prepared_bytes(num_elements, dtype)
    return total


class DecoderLayer:
    """Attention and MLP, each behind a norm; Gemma norms what they return as well."""

    def __init__(self, config: ModelConfig, weights: WeightSource, *, layer: int, cache_layer: int, ops: Ops,
                 group: Group):
        prefix = f"layers.{layer}"

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weights.take(f"{prefix}.{name}.weight"), eps=config.norm_eps,
                           offset=config.norm_weight_offset, ops=ops)

        self.attn_norm, self.mlp_norm = norm("attn_norm"), norm("mlp_norm")
        self.attn_post_norm = norm("attn_post_norm") if config.sandwich_norm else None
        self.mlp_post_norm = norm("mlp_post_norm") if config.sandwich_norm else None
        self.attention = Attention(config, weights, prefix, layer=layer, cache_layer=cache_layer, ops=ops, group=group)
        self.mlp = GatedMlp(config, weights, prefix, ops=ops, group=group)
        # Where a norm or other ranks' parts come between product and residual, the sum belongs to the next norm.
        self.is_fused = group.size == 1 and not config.sandwich_norm

    def __call__(self, x: Tensor | None, residual: Tensor, step: ForwardStep) -> tuple[Tensor | None, Tensor]:
        """x, what the layer before adds to the residual (None if it is added already), and the residual; the same
        after this layer. Products take their norm and add the residual themselves where they can; else the sum is
        left to the next norm, which does it in the same pass. The residual may be overwritten."""
        if self.is_fused:
            residual = self.attention(residual, step, norm=self.attn_norm.prologue, residual=residual)
            return None, self.mlp(residual, norm=self.mlp_norm.prologue, residual=residual)
        x, residual = self.attn_norm.add(x, residual)
        x = self.attention(x, step)
        if self.attn_post_norm is not None:
            x = self.attn_post_norm(x)
        x, residual = self.mlp_norm.add(x, residual)
        x = self.mlp(x)
        if self.mlp_post_norm is not None:
            x = self.mlp_post_norm(x)
        return x, residual


class Decoder:
    """One rank's part of a model: a range of layers, and of each layer its share.

    Args:
        config: the whole model's shape.
        weights: this rank's tensors under canonical names (models/weights.py), on the device it runs on. The dict is
            emptied, so that a tensor whose kernel keeps another layout is freed.
        layers: the pipeline stage's layers; None is all.
        tp_rank, tp_size: this rank's share of each layer.
        group: the ranks that share the layers; needed when tp_size is above 1.
        implementation: kernels to run; None goes by the device of the weights. "reference" is the slow oracle.

    Raises:
        CheckpointError: a tensor is missing.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], *, layers: range | None = None,
                 tp_rank: int = 0, tp_size: int = 1, group: Group | None = None, implementation: str | None = None):
        self.config = config
        self.layer_range = layers or range(config.num_layers)
        group = group or SingleRank()
        assert (group.rank, group.size) == (tp_rank, tp_size), "tp_size > 1 needs its group"
        any_weight = next(iter(weights.values()))
        self.device, self.dtype = any_weight.device, any_weight.dtype
        ops = load_ops(implementation or self.device.type)
        source = WeightSource(weights)
        self._ops = ops
        self._rotary = RotaryEmbedding(config.rope, config.head_dim, self.device)
        self._num_heads = config.num_heads // tp_size
        self._windows = {config.window(layer) for layer in self.layer_range}
        is_tied = config.tie_word_embeddings
        embed = source.take_if("embed.weight", self.is_first or (self.is_last and is_tied))
        self.embed = Embedding(embed, config.embedding_scale, group) if self.is_first else None
        self.layers = [DecoderLayer(config, source, layer=layer, cache_layer=index, ops=ops, group=group)
                       for index, layer in enumerate(self.layer_range)]
        if self.is_last:
            self.norm = RMSNorm(source.take("norm.weight"), eps=config.norm_eps, offset=config.norm_weight_offset,
                                ops=ops)
            self.head = Head(embed if is_tied else source.take("head.weight"), config.logits_softcap, ops, group)

    @property
    def is_first(self) -> bool:
        return self.layer_range.start == 0

    @property
    def is_last(self) -> bool:
        return self.layer_range.stop == self.config.num_layers

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, positions: Tensor, kv_pool: KvPool, meta: AttentionMetadata, *,
                hidden: Tensor | None = None) -> Tensor:
        """Runs the stage's layers over one step and writes its keys and values into the pool.

        Args:
            token_ids: [T] int64; not used by a later pipeline stage.
            positions: [T] int64, index of each token in its sequence.
            kv_pool: this rank's cache, with one layer per layer of the stage.
            meta: the step's rows.
            hidden: [T, D], what the stage before returned; may be overwritten.

        Returns:
            [T, D], after the final norm on the last stage.
        """
        step = self._begin(positions, kv_pool, meta)
        residual = self.embed(token_ids) if self.embed is not None else hidden
        x = None
        for layer in self.layers:
            x, residual = layer(x, residual, step)
        if self.is_last:
            return self.norm.add(x, residual)[0]
        return residual if x is None else residual + x

    @torch.inference_mode()
    def run_products(self, num_tokens: int) -> None:
        """Runs a layer's products over tokens that mean nothing: libraries choose a kernel by their number, and load
        it when it is first used."""
        config, layer = self.config, self.layers[0]
        x, heads = (torch.zeros(num_tokens, width, dtype=self.dtype, device=self.device)
                    for width in (config.hidden_size, self._num_heads * config.head_dim))
        layer.attention.qkv(x)
        layer.attention.o(heads, residual=x.clone() if layer.is_fused else None)
        del heads
        layer.mlp(x, residual=x.clone() if layer.is_fused else None)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: hidden [R, D] after the final norm to [R, V] float32, soft cap applied."""
        return self.head(hidden)

    def _begin(self, positions: Tensor, kv_pool: KvPool, meta: AttentionMetadata) -> ForwardStep:
        rope_lens = meta.rope_lens if is_length_dependent(self.config.rope) else None
        angles = self._ops.rotary.prepare_angles(*self._rotary(positions, rope_lens))
        plans = {window: self._ops.attention.plan(meta, kv_pool.data, num_heads=self._num_heads, window=window)
                 for window in self._windows}
        return ForwardStep(kv_pool.data, angles, plans)
