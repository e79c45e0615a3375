"""Block tables: which blocks each running sequence holds, and which of them others may find.

A block's key is entered when the step that completes the block has been planned and all its tokens are known. The
device runs steps in the order of their launch, so whatever is planned later reads contents that are there by then;
rows of the same step may not. If a step fails, the scheduler has the keys of all it wrote forgotten.

While a running sequence is still computing its prompt, the keys to come are announced. A newcomer that would need one
of these blocks next waits until it can share it, so that the n completions of a prompt compute it once.
"""

from __future__ import annotations

import enum

from pelton.cache.blocks import BlockPool
from pelton.cache.prefix import block_keys, root_key
from pelton.scheduler.policies import Policy
from pelton.types import Request, Sequence


class Admission(enum.Enum):
    """What became of a sequence that wants to run."""

    ADMITTED = enum.auto()
    NO_ROOM = enum.auto()
    """Too few free blocks."""
    PREFIX_COMING = enum.auto()
    """A running sequence is about to compute a block that it can share."""


class BlockTables:
    """Gives sequences their blocks.

    Args:
        awaits_prefixes: whether newcomers wait for the announced blocks of running sequences.
    """

    def __init__(self, pool: BlockPool, policy: Policy, *, awaits_prefixes: bool):
        self.pool = pool
        self.num_promised = 0  # blocks that running sequences may still ask for, at their full length
        self.announced: dict[bytes, Sequence] = {}
        self._policy = policy
        self._awaits_prefixes = awaits_prefixes
        self._keyed_prompt: tuple[Request | None, list[bytes]] = (None, [])

    def admit(self, seq: Sequence, num_running: int) -> Admission:
        """Gives a sequence the blocks of all its known tokens, the cached prefix first, or nothing."""
        if self._is_coming(seq.awaited_key, seq):
            return Admission.PREFIX_COMING
        keys = self._reusable_keys(seq)
        found = self.pool.find(keys)
        if len(found) < len(keys) and self._is_coming(keys[len(found)], seq):
            seq.awaited_key = keys[len(found)]
            return Admission.PREFIX_COMING
        num_blocks = -(-len(seq.token_ids) // self.pool.tokens_per_block)
        num_taken = num_blocks - len(found) + self.pool.num_unreferenced(found)
        num_promised = self.num_promised + seq.max_num_blocks - num_blocks
        if num_taken + self._policy.num_kept_free(num_running, num_promised) > self.pool.num_free:
            return Admission.NO_ROOM
        self.pool.acquire(found)
        seq.block_ids = found + self.pool.allocate(num_blocks - len(found))
        seq.awaited_key = None
        seq.num_keyed_blocks = len(found)
        seq.num_scheduled = len(found) * self.pool.tokens_per_block
        seq.num_prefill_tokens = len(seq.token_ids)
        self.num_promised = num_promised
        if self._awaits_prefixes:
            for key in seq.block_keys[len(found):]:
                self.announced.setdefault(key, seq)
        return Admission.ADMITTED

    def grow(self, seq: Sequence) -> int:
        """Appends one block to a table and returns its id; the pool must have one free."""
        (block,) = self.pool.allocate(1)
        seq.block_ids.append(block)
        self.num_promised -= 1
        return block

    def enter_full_blocks(self, seq: Sequence) -> None:
        """Makes the blocks findable whose tokens are all known and planned to be computed."""
        if not self.pool.enable_reuse:
            return
        num_full = min(seq.num_scheduled, len(seq.token_ids)) // self.pool.tokens_per_block
        self._extend_keys(seq, num_full)
        for index in range(seq.num_keyed_blocks, num_full):
            key = seq.block_keys[index]
            self.pool.enter(seq.block_ids[index], key)
            if self.announced.get(key) is seq:
                del self.announced[key]
        seq.num_keyed_blocks = max(seq.num_keyed_blocks, num_full)

    def withdraw(self, seq: Sequence) -> list[int]:
        """Takes the table from a sequence that stops running; the blocks are still to be released."""
        for key in seq.block_keys[seq.num_keyed_blocks:]:
            if self.announced.get(key) is seq:
                del self.announced[key]
        table, seq.block_ids = seq.block_ids, []
        self.num_promised -= seq.max_num_blocks - len(table)
        seq.num_scheduled = seq.num_prefill_tokens = seq.num_keyed_blocks = 0
        return table

    def _is_coming(self, key: bytes | None, seq: Sequence) -> bool:
        """Whether one that goes first anyway is about to compute the block; to wait for others could take long."""
        owner = self.announced.get(key) if key is not None else None
        return owner is not None and owner.rank < seq.rank

    def _reusable_keys(self, seq: Sequence) -> list[bytes]:
        """Keys of the blocks that it need not compute itself: at least its last token always is computed."""
        if not self.pool.enable_reuse:
            return []
        self._extend_keys(seq, len(seq.token_ids) // self.pool.tokens_per_block)
        if seq.sampling.prompt_logprobs is not None:
            return []  # the logits of every prompt token are asked for
        return seq.block_keys[:(len(seq.token_ids) - 1) // self.pool.tokens_per_block]

    def _extend_keys(self, seq: Sequence, num_blocks: int) -> None:
        num_keys = len(seq.block_keys)
        if num_blocks <= num_keys:
            return
        request, prompt_keys = self._keyed_prompt
        if not num_keys and seq.request is request:  # the other completions of a prompt come in a row
            seq.block_keys = list(prompt_keys)
            num_keys = len(prompt_keys)
        tokens_per_block = self.pool.tokens_per_block
        parent = seq.block_keys[-1] if num_keys else root_key(seq.request.cache_salt, seq.kv_variant)
        token_ids = seq.token_ids[num_keys * tokens_per_block:num_blocks * tokens_per_block]
        seq.block_keys += block_keys(parent, token_ids, tokens_per_block)
        if seq.request is not request:
            self._keyed_prompt = (seq.request, seq.block_keys[:seq.num_prompt_tokens // tokens_per_block])
