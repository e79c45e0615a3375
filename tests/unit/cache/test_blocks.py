import random
from collections import Counter

import pytest

from pelton.cache.blocks import BlockPool


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def filled(pool: BlockPool, *numbers: int) -> list[int]:
    """A table with one block per key."""
    table = pool.allocate(len(numbers))
    for block, number in zip(table, numbers, strict=True):
        pool.enter(block, key(number))
    return table


def find(pool: BlockPool, *numbers: int) -> list[int]:
    return pool.find([key(number) for number in numbers])


def test_allocate_takes_each_block_once():
    pool = BlockPool(4, 16)
    tables = [pool.allocate(3), pool.allocate(1)]
    assert sorted(tables[0] + tables[1]) == [0, 1, 2, 3]
    assert (pool.num_free, pool.num_used) == (0, 4)
    pool.check_integrity(tables)
    with pytest.raises(AssertionError, match="1 blocks wanted, 0 free"):
        pool.allocate(1)


def test_release_gives_back_and_refuses_a_second_time():
    pool = BlockPool(2, 16)
    table = pool.allocate(2)
    pool.release(table)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(table)


def test_found_blocks_are_shared_and_counted():
    pool = BlockPool(4, 16)
    table = filled(pool, 1, 2)
    assert find(pool, 1, 2, 3) == table
    assert find(pool, 2) == table[1:]
    assert find(pool, 3, 1) == []
    pool.acquire(table)
    pool.check_integrity([table, table])
    pool.release(table)
    assert pool.num_used == 2
    pool.release(table)
    assert (pool.num_used, pool.num_free, pool.num_cached) == (0, 4, 2)


def test_released_prefixes_stay_findable_until_space_is_needed():
    pool = BlockPool(3, 16)
    table = filled(pool, 1, 2)
    pool.release(table)
    assert pool.num_unreferenced(find(pool, 1, 2)) == 2
    other = pool.allocate(1)  # the block that never held anything
    assert find(pool, 1, 2) == table
    pool.acquire(table)
    assert pool.num_cached == 0
    pool.check_integrity([table, other])


def test_least_recently_released_goes_first_and_the_end_of_a_prefix_before_its_start():
    pool = BlockPool(5, 16)
    first, second = filled(pool, 1, 2, 3), filled(pool, 4, 5)
    pool.release(first)
    pool.release(second)
    taken = [pool.allocate(1)[0] for _ in range(5)]
    assert taken == [first[2], first[1], first[0], second[1], second[0]]
    assert find(pool, 1) == find(pool, 4) == []


def test_use_makes_a_prefix_recent():
    pool = BlockPool(2, 16)
    old, new = filled(pool, 1), filled(pool, 2)
    pool.release(old)
    pool.release(new)
    pool.acquire(old)
    pool.release(old)
    assert pool.allocate(1) == new


def test_a_key_keeps_its_first_block():
    pool = BlockPool(2, 16)
    first, second = filled(pool, 1), filled(pool, 1)
    assert find(pool, 1) == first
    pool.release(second)
    assert (pool.num_cached, pool.num_free) == (0, 1)
    pool.check_integrity([first])


def test_forgotten_blocks_are_not_found():
    pool = BlockPool(3, 16)
    held, cached = filled(pool, 1), filled(pool, 2)
    pool.release(cached)
    pool.forget([*held, *cached, 2])
    assert find(pool, 1) == find(pool, 2) == []
    assert pool.num_cached == 0
    pool.check_integrity([held])
    pool.release(held)
    assert pool.num_free == 3


def test_without_reuse_nothing_is_found():
    pool = BlockPool(2, 16, enable_reuse=False)
    table = filled(pool, 1)
    pool.release(table)
    assert find(pool, 1) == []
    assert pool.num_cached == 0


def _damage_refs(pool):
    pool._num_refs[0] += 1


def _damage_free_twice(pool):
    pool._free.append(pool._free[0])


def _damage_lost(pool):
    pool._free.pop()


def _damage_key(pool):
    pool._block_of[key(1)] = 1


def _damage_cached(pool):
    pool._cached[pool._free.pop()] = None


def _damage_free_keyed(pool):
    block = next(iter(pool._cached))
    del pool._cached[block]
    pool._free.append(block)


@pytest.mark.parametrize("damage", [_damage_refs, _damage_free_twice, _damage_lost, _damage_key, _damage_cached,
                                    _damage_free_keyed])
def test_integrity_check_sees_damage(damage):
    pool = BlockPool(6, 16)
    table, cached = filled(pool, 1, 2), filled(pool, 3)
    pool.release(cached)
    pool.check_integrity([table])
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check_integrity([table])


def test_integrity_check_sees_wrong_tables():
    pool = BlockPool(4, 16)
    table = pool.allocate(2)
    for tables in ([], [table, table], [[*table, 3]], [[table[0], table[0], table[1]]]):
        with pytest.raises(AssertionError):
            pool.check_integrity(tables)


def test_random_use_agrees_with_plain_counting():
    rng = random.Random(5)
    pool = BlockPool(12, 16)
    tables: list[list[int]] = []
    for _ in range(5000):
        roll = rng.random()
        if roll < 0.45:
            first = rng.randrange(6) * 10
            found = find(pool, *range(first, first + rng.randint(0, 3)))
            num_new = rng.randint(0, 3)
            if pool.num_unreferenced(found) + num_new <= pool.num_free:
                pool.acquire(found)
                table = found + pool.allocate(num_new)
                for place in range(len(found), len(table)):
                    pool.enter(table[place], key(first + place))
                tables.append(table)
        elif roll < 0.9 and tables:
            pool.release(tables.pop(rng.randrange(len(tables))))
        elif roll < 0.92:
            pool.forget(rng.sample(range(12), 2))
        pool.check_integrity(tables)
        assert pool.num_used == len(Counter(block for table in tables for block in table))
