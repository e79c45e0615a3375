"""Angles of the rotary embedding for every kind of scaling, in the numerics of transformers' modeling_rope_utils.

Which length sets the rotation of kinds that depend on it is said in models/rope.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pelton.config import RopeConfig


class RotaryEmbedding:
    """Cosines and sines of positions, computed when they are needed: no table, so no longest position."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device | str = "cpu"):
        self.rope = rope
        self.rotary_dim = rope.rotary_dim or head_dim
        self.inv_freq = inverse_frequencies(rope, self.rotary_dim).to(device)  # [R / 2]
        self.factor = attention_factor(rope)
        self._exponents = _exponents(self.rotary_dim).to(device)
        self._long_inv_freq = None
        if rope.kind == "longrope":
            self._long_inv_freq = _longrope(rope, rope.long_factor, self.rotary_dim).to(device)

    def __call__(self, positions: Tensor, rope_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, R / 2] float32 each.

        Args:
            positions: [T] int64.
            rope_lens: [T] int64, the length that sets each token's rotation, for the kinds that depend on it; None
                takes every sequence to stay within the original length.
        """
        inv_freq = self.inv_freq if rope_lens is None else self._frequencies(rope_lens)
        angles = positions[:, None] * inv_freq  # the product converts, in one pass, to the type of the frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)

    def _frequencies(self, rope_lens: Tensor) -> Tensor:
        """[R / 2], or [T, R / 2] for the kinds that depend on a length."""
        rope, dim = self.rope, self.rotary_dim
        if rope.kind not in ("longrope", "dynamic"):
            return self.inv_freq
        original = rope.original_max_position_embeddings
        is_long = (rope_lens > original)[:, None]
        if rope.kind == "longrope":
            return torch.where(is_long, self._long_inv_freq, self.inv_freq)
        stretch = rope.factor * rope_lens.clamp(min=original) / original - (rope.factor - 1)
        base = rope.theta * stretch ** (dim / (dim - 2))
        return torch.where(is_long, 1.0 / base[:, None] ** self._exponents, self.inv_freq)


def inverse_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """[dim / 2] float32 angles per position, for sequences within the original length."""
    plain = 1.0 / rope.theta ** _exponents(dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, dim)
    if rope.kind == "longrope":
        return _longrope(rope, rope.short_factor, dim)
    assert rope.kind in ("default", "dynamic"), rope.kind
    return plain


def attention_factor(rope: RopeConfig) -> float:
    """Multiplier of cos and sin: 1 but for yarn (Peng et al. 2023) and longrope (Ding et al. 2024)."""
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(rope.factor, rope.mscale_all_dim)
        return _yarn_scale(rope.factor, 1.0)
    if rope.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, those between blended."""
    original = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    is_long = wavelength > original / rope.low_freq_factor
    is_short = wavelength < original / rope.high_freq_factor
    scaled = torch.where(is_long, plain / rope.factor, plain)
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * scaled / rope.factor + blend * scaled
    return torch.where(is_long | is_short, scaled, blended)


def _yarn(rope: RopeConfig, dim: int) -> Tensor:
    """YaRN: fast dimensions keep their frequency, slow ones are divided by the factor, with a ramp between."""
    def dimension_of(rotations: float) -> float:
        length = rope.original_max_position_embeddings
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    keep = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    periods = rope.theta ** (torch.arange(0, dim, 2).float() / dim)
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: RopeConfig, factors: tuple[float, ...], dim: int) -> Tensor:
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta ** _exponents(dim))
