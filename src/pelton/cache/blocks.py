"""The pool of KV blocks: who holds which, which may be reused for an equal prefix, which is given away next.

Counts and ids only; the tensors behind the ids are in cache/pool.py. Knows no sequences and no steps: when a block may
be released, and when a key may be entered, is the scheduler's business.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Fixed blocks in one of three states: free, referenced (by one or more tables), or cached.

    A cached block is unreferenced but still findable by its key; it counts as free, because allocation evicts the
    least recently released one once no truly free block is left.

    Args:
        num_blocks: blocks in the pool, with ids 0 to num_blocks - 1.
        enable_reuse: off, keys are ignored and nothing is ever found.
    """

    def __init__(self, num_blocks: int, tokens_per_block: int, *, enable_reuse: bool = True):
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        self.enable_reuse = enable_reuse
        self._num_refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low ids first, the warmest again next
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._block_of: dict[bytes, int] = {}
        self._key_of: list[bytes | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, those holding an unreferenced prefix included."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Of the free blocks, those that still hold a prefix."""
        return len(self._cached)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest findable run of `keys` from the first on."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_unreferenced(self, block_ids: Iterable[int]) -> int:
        """How many of the blocks would leave the free ones if they were acquired."""
        num_refs = self._num_refs
        return sum(1 for block in block_ids if not num_refs[block])

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Takes one more reference on blocks that `find` returned."""
        for block in block_ids:
            if not self._num_refs[block]:
                del self._cached[block]
            self._num_refs[block] += 1

    def allocate(self, num: int) -> list[int]:
        """Takes `num` blocks with unspecified contents, one reference each; there must be that many free."""
        assert num <= self.num_free, f"{num} blocks wanted, {self.num_free} free"
        blocks = []
        for _ in range(num):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._drop_key(block)
            self._num_refs[block] = 1
            blocks.append(block)
        return blocks

    def release(self, block_ids: list[int]) -> None:
        """Gives back one reference on each block of a table, given in the table's order.

        The later blocks of a table are of no use without the earlier ones, so they count as released earlier and are
        evicted first.
        """
        for block in reversed(block_ids):
            assert self._num_refs[block] > 0, f"block {block} released twice"
            self._num_refs[block] -= 1
            if self._num_refs[block]:
                continue
            if self._key_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def enter(self, block: int, key: bytes) -> None:
        """Makes a referenced block findable. If the key has a block already, that one keeps it."""
        if not self.enable_reuse or key in self._block_of:
            return
        assert self._num_refs[block] > 0, f"block {block} takes a key but nobody holds it"
        assert self._key_of[block] is None, f"block {block} takes a second key"
        self._block_of[key] = block
        self._key_of[block] = key

    def forget(self, block_ids: Iterable[int]) -> None:
        """Makes blocks unfindable, because their contents cannot be trusted."""
        for block in block_ids:
            if self._key_of[block] is None:
                continue
            self._drop_key(block)
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def _drop_key(self, block: int) -> None:
        key = self._key_of[block]
        assert key is not None
        del self._block_of[key]
        self._key_of[block] = None

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Raises AssertionError if the books disagree with each other or with `tables`, all block tables in use."""
        held: Counter[int] = Counter()
        for table in tables:
            assert len(set(table)) == len(table), f"a block stands twice in one table: {table}"
            held.update(table)
        for block, num_refs in enumerate(self._num_refs):
            assert num_refs == held[block], f"block {block} has {num_refs} references, {held[block]} tables hold it"
        free, cached, used = set(self._free), set(self._cached), set(held)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "a block is lost, or in two states"
        assert free | cached | used == set(range(self.num_blocks)), "a block is lost"
        assert all(self._key_of[block] is None for block in free), "a free block has a key"
        assert all(self._key_of[block] is not None for block in cached), "a cached block has no key"
        keyed = {key: block for block, key in enumerate(self._key_of) if key is not None}
        assert keyed == self._block_of, "keys and blocks disagree"
