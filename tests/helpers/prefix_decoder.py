"""A decoder whose hidden state is a number made of the whole prefix, read back through the paged cache.

Anything the runner gets wrong (a position, a block, a stale token, a row out of place) changes the number. `hidden_of`
says what it must be for a list of tokens.
"""

import torch

from pelton.config import ModelConfig

PRIME = 9973
VOCAB_SIZE = 61
CONFIG = ModelConfig(architecture="LlamaForCausalLM", vocab_size=VOCAB_SIZE, hidden_size=1, intermediate_size=1,
                     num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, max_position_embeddings=256, eos_ids=(1,))


def hidden_of(token_ids):
    """The state after the last of these tokens: exact in float32."""
    total = 0
    for position, token in enumerate(token_ids):
        total = (total * 31 + token * 7 + position + 1) % PRIME
    return float(total)


def logits_of(hidden):
    """[R, 1] -> [R, V] float32."""
    tokens = torch.arange(1, VOCAB_SIZE + 1, dtype=torch.float64)
    return (torch.sin(hidden.double() * tokens * 0.37 + tokens) * 4).float()


class PrefixDecoder:
    def __init__(self):
        self.num_forwards = 0
        self.logits_rows = []
        self.metas = []

    def forward(self, token_ids, positions, kv_pool, meta):
        self.num_forwards += 1
        self.metas.append(meta)
        size = kv_pool.tokens_per_block
        keys = kv_pool.data[:, 0, 0, 0]  # [block, token, 2]
        for token, position, where in zip(token_ids.tolist(), positions.tolist(), meta.slot_mapping.tolist()):
            keys[where // size, where % size] = torch.tensor([float(token), float(position)])
        hidden = []
        for row, (length, total) in enumerate(zip(meta.query_lens_host, meta.seq_lens_host, strict=True)):
            assert int(meta.seq_lens[row]) == total
            table = meta.block_tables[row].tolist()
            cached = [keys[table[p // size], p % size].tolist() for p in range(total)]
            assert [position for _, position in cached] == list(range(total))
            tokens = [int(token) for token, _ in cached]
            hidden += [hidden_of(tokens[:stop]) for stop in range(total - length + 1, total + 1)]
        assert meta.query_start.tolist() == [sum(meta.query_lens_host[:i]) for i in range(meta.num_rows + 1)]
        return torch.tensor(hidden)[:, None]

    def logits(self, hidden):
        self.logits_rows.append(len(hidden))
        return logits_of(hidden)
