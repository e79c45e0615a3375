"""The smallest thing that can drive a Decoder: sequences in shuffled blocks of one pool, steps as lists of rows."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pelton.cache.pool import KvPool
from pelton.config import ModelConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.models.decoder import Decoder
from pelton.models.registry import get_architecture, parse_config
from pelton.models.rope import is_length_dependent, rope_length


def load_config(path: Path) -> ModelConfig:
    return parse_config(json.loads((path / "config.json").read_text()))


def load_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """A checkpoint's tensors under canonical names, fused by hand from the declaration."""
    sources = {}
    for file in path.glob("*.safetensors"):
        sources |= load_file(file)
    return {spec.name: torch.cat([sources[name] for name in spec.sources])
            for spec in get_architecture(config.architecture).weights(config)}


@dataclass
class PagedSequence:
    """Known tokens, how many of them are cached, and the blocks that hold them."""

    token_ids: list[int]
    num_prompt_tokens: int
    max_total_tokens: int
    num_cached: int = 0
    blocks: list[int] = field(default_factory=list)


class PagedDriver:
    """Runs steps over sequences whose blocks are handed out in random order from a pool full of NaN."""

    def __init__(self, decoder: Decoder, *, num_blocks: int = 96, tokens_per_block: int = 16, seed: int = 0):
        config = decoder.config
        self.decoder = decoder
        self.pool = KvPool(num_blocks, len(decoder.layer_range), config.num_kv_heads, tokens_per_block,
                           config.head_dim, decoder.dtype)
        self.pool.data.fill_(float("nan"))
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)

    def add(self, token_ids: list[int], *, max_new_tokens: int = 0) -> PagedSequence:
        return PagedSequence(list(token_ids), len(token_ids), len(token_ids) + max_new_tokens)

    def free(self, sequence: PagedSequence) -> None:
        self._free += sequence.blocks
        sequence.blocks, sequence.num_cached = [], 0

    def step(self, rows: list[tuple[PagedSequence, int]]) -> list[Tensor]:
        """Runs the next `n` known tokens of each row's sequence, decodes first. Returns each row's logits, [n, V]."""
        assert rows == sorted(rows, key=lambda row: row[1] > 1)
        meta, tokens, positions = self._metadata(rows)
        hidden = self.decoder.forward(torch.tensor(tokens), torch.tensor(positions), self.pool, meta)
        for sequence, count in rows:
            sequence.num_cached += count
        return list(self.decoder.logits(hidden).split([count for _, count in rows]))

    def prefill(self, sequence: PagedSequence, *, chunk: int | None = None) -> Tensor:
        """Runs all tokens not yet cached, whole or `chunk` at a time. Returns their logits."""
        parts = []
        while (left := len(sequence.token_ids) - sequence.num_cached) > 0:
            parts += self.step([(sequence, min(left, chunk or left))])
        return torch.cat(parts)

    def generate(self, sequence: PagedSequence, num_tokens: int, *, chunk: int | None = None) -> list[int]:
        """Appends greedy tokens; returns them."""
        logits = self.prefill(sequence, chunk=chunk)
        for _ in range(num_tokens):
            sequence.token_ids.append(int(logits[-1].argmax()))
            if len(sequence.token_ids) < sequence.num_prompt_tokens + num_tokens:
                (logits,) = self.step([(sequence, 1)])
        return sequence.token_ids[sequence.num_prompt_tokens :]

    def _metadata(self, rows: list[tuple[PagedSequence, int]]) -> tuple[AttentionMetadata, list[int], list[int]]:
        tokens, positions, rope_lens = [], [], []
        rope = self.decoder.config.rope
        for sequence, count in rows:
            stop = sequence.num_cached + count
            while len(sequence.blocks) * self.pool.tokens_per_block < stop:
                sequence.blocks.append(self._free.pop())
            tokens += sequence.token_ids[sequence.num_cached : stop]
            positions += range(sequence.num_cached, stop)
            rope_lens += [rope_length(rope, position, num_prompt_tokens=sequence.num_prompt_tokens,
                                      max_total_tokens=sequence.max_total_tokens)
                          for position in range(sequence.num_cached, stop)]
        meta = AttentionMetadata.from_rows(
            [sequence.num_cached for sequence, _ in rows], [count for _, count in rows],
            [sequence.blocks for sequence, _ in rows], num_decodes=sum(count == 1 for _, count in rows),
            tokens_per_block=self.pool.tokens_per_block,
            rope_lens=rope_lens if is_length_dependent(rope) else None)
        return meta, tokens, positions
