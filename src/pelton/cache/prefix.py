"""Names for the contents of KV blocks: 128-bit BLAKE2b keys (RFC 7693), each chained to the block before it.

A key stands for a block's tokens and everything before them, so equal keys mean equal keys and values. The bytes that
are hashed are fixed (little-endian, no Python hash), so that keys agree between processes and hosts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

KEY_BYTES = 16
_PERSON = b"pelton kv block"  # keeps these keys apart from other uses of the same hash


def root_key(salt: str = "", variant: str = "") -> bytes:
    """The parent of a sequence's first block: requests share blocks only under the same salt and variant.

    Args:
        salt: the request's own.
        variant: what keys and values depend on beside the tokens: an adapter, a rotation that goes by length.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON)
    for text in (salt, variant):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<I", len(encoded)) + encoded)
    return digest.digest()


def block_keys(parent: bytes, token_ids: Sequence[int], tokens_per_block: int) -> list[bytes]:
    """Keys of the full blocks at the start of `token_ids`, which follow the block named `parent`."""
    num_blocks = len(token_ids) // tokens_per_block
    num_tokens = num_blocks * tokens_per_block
    packed = memoryview(struct.pack(f"<{num_tokens}I", *token_ids[:num_tokens]))
    stride = 4 * tokens_per_block
    keys = []
    for start in range(0, len(packed), stride):
        digest = hashlib.blake2b(parent, digest_size=KEY_BYTES, person=_PERSON)
        digest.update(packed[start:start + stride])
        parent = digest.digest()
        keys.append(parent)
    return keys
