import hashlib
import struct

import pytest

from pelton.cache.prefix import KEY_BYTES, block_keys, root_key


def test_keys_are_pinned():
    # Other processes, hosts and versions must come to the same keys.
    assert root_key().hex() == "7c8cddae1994d74176f26fe0ef33eeac"
    assert root_key("tenant-a").hex() == "3d4730a8e5c597c58b85b44bdbaacf90"
    assert root_key("", "lora-1").hex() == "4159c2a042d9ccf723a0f629a67aa856"
    assert [key.hex() for key in block_keys(root_key(), list(range(40)), 16)] == [
        "5175d7227fe1f0d259f221097fe5b0d9",
        "e53d818f131cb7f846ed0000a816b4cc",
    ]
    assert [key.hex() for key in block_keys(root_key("tenant-a"), [150_000] * 16, 16)] == [
        "e65b0e9cc4953326ff52efb80144d41a",
    ]


def test_a_key_is_blake2b_over_parent_and_little_endian_tokens():
    parent = root_key("s")
    tokens = [1, 256, 65_536, 2**32 - 1]
    message = parent + b"".join(struct.pack("<I", token) for token in tokens)
    expected = hashlib.blake2b(message, digest_size=16, person=b"pelton kv block").digest()
    assert block_keys(parent, tokens, 4) == [expected]
    assert len(expected) == KEY_BYTES


def test_only_full_blocks_have_keys():
    assert block_keys(root_key(), [1, 2, 3], 4) == []
    assert block_keys(root_key(), [], 4) == []
    assert len(block_keys(root_key(), list(range(11)), 4)) == 2


def test_a_key_depends_on_everything_before_it():
    first, second = block_keys(root_key(), [1, 2, 3, 4], 2)
    assert block_keys(root_key(), [9, 2, 3, 4], 2)[1] != second
    assert block_keys(first, [3, 4], 2) == [second]
    assert block_keys(root_key(), [3, 4], 2) != [second]


@pytest.mark.parametrize("other", [("b", ""), ("", "a"), ("", ""), ("a", "x"), ("ax", "")])
def test_salt_and_variant_keep_apart(other):
    assert root_key("a", "") != root_key(*other)


def test_salt_and_variant_cannot_run_into_each_other():
    assert root_key("ab", "c") != root_key("a", "bc")


def test_any_string_can_be_a_salt():
    assert root_key("\ud800") != root_key("?")
