"""What an architecture declares about itself: how its config reads and which tensors it wants. Knows no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pelton.config import ModelConfig
from pelton.models.weights import WeightSpec


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model family, found by `architectures[0]` of its Hugging Face config."""

    name: str
    parse_config: Callable[[dict[str, Any]], ModelConfig]
    """Reads config.json; raises CheckpointError naming the field it cannot use."""
    weights: Callable[[ModelConfig], list[WeightSpec]]
    """The canonical tensors, whole and unsharded, in the order they are used."""
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias")
    """Patterns of source names that checkpoints may hold and the model does not need: buffers of older exports."""
    decoder: str = "pelton.models.decoder:Decoder"
    """Where the class that runs it stands, as module:class; imported only when it runs."""

    def is_ignored(self, source: str, config: ModelConfig) -> bool:
        """Whether a checkpoint's tensor may be left out; anything else without a place is unexpected."""
        if config.tie_word_embeddings and source == "lm_head.weight":
            return True
        return any(fnmatchcase(source, pattern) for pattern in self.ignored)
