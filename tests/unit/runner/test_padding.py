"""What steps are padded to: few numbers, close to each other."""

from __future__ import annotations

import itertools
import random

import pytest

from pelton.runner.padding import padded, row_sizes, token_sizes


@pytest.mark.parametrize("most", [1, 16, 24, 256, 300, 1000, 1024, 2000, 4096, 8192, 16384])
def test_sizes_of_tokens_are_few_and_close(most):
    sizes = token_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert len(sizes) <= 24 + most // 80
    assert all(after - before <= max(16, before / 3) for before, after in itertools.pairwise(sizes))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 100, 256, 500, 1024, 4096])
def test_sizes_of_rows_are_few_and_pad_little(most):
    sizes = row_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert len(sizes) <= 40
    for num_rows in range(1, most + 1):
        size = padded(num_rows, sizes)
        assert size - num_rows < max(2, num_rows)
        assert num_rows < 16 or size < 1.6 * num_rows


def test_a_number_is_padded_to_the_first_size_that_holds_it():
    draw = random.Random()
    for _ in range(50):
        sizes = sorted(draw.sample(range(1, 1000), 20))
        number = draw.randint(0, sizes[-1])
        assert padded(number, sizes) == min(size for size in sizes if size >= number)
