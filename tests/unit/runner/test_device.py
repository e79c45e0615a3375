"""Queues, the packing of host arrays, and which graphs and warm-up steps there are."""

import numpy as np
import pytest
import torch

from pelton.runner.device import CpuQueue, make_staging, pack, pack_places, unpack
from pelton.runner.graphs import graph_sizes
from pelton.runner.warmup import token_counts


def test_arrays_of_all_types_survive_packing():
    rng = np.random.default_rng(1)
    arrays = (rng.integers(0, 2**40, 7), np.empty(0, dtype=np.int64), rng.integers(0, 9, (3, 5)).astype(np.int32),
              rng.random(1).astype(np.float32), rng.integers(0, 2, 11).astype(bool), np.empty((0, 4), dtype=np.int32))
    places, num_bytes = pack_places(arrays)
    packed = np.full(num_bytes, 255, dtype=np.uint8)
    pack(arrays, places, packed)
    for array, tensor in zip(arrays, unpack(torch.from_numpy(packed), arrays, places), strict=True):
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        assert tensor.tolist() == array.tolist()
        assert not array.size or tensor.data_ptr() % 4 == 0
    assert all(place % 16 == 0 for place in places)


def test_nothing_packed_still_takes_memory():
    places, num_bytes = pack_places((np.empty(0, dtype=np.int32),))
    assert (places, num_bytes > 0) == ([0], True)


def test_staging_for_a_cpu_shares_memory():
    array = np.arange(4)
    tensor, = make_staging(torch.device("cpu"), 100).put(array)
    array[2] = 9
    assert tensor.tolist() == [0, 1, 9, 3]


def test_signal_comes_after_the_jobs_before_it():
    done = []
    queue = CpuQueue(1)
    for i in range(50):
        queue.submit(lambda i=i: done.append(i))
    signal = queue.signal()
    queue.submit(lambda: done.append("later"))
    signal.wait()
    assert done[:50] == list(range(50))
    queue.close()
    assert done[-1] == "later"
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(lambda: None)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 100, 256, 500, 1024, 4096])
def test_graphs_are_few_and_pad_little(most):
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert len(sizes) <= 40
    for num_rows in range(1, most + 1):
        size = next(size for size in sizes if size >= num_rows)
        assert size - num_rows < max(2, num_rows)
        assert num_rows < 16 or size < 1.6 * num_rows


@pytest.mark.parametrize("most", [1, 2, 5, 64, 8192])
def test_warm_up_reaches_both_sides_of_powers_of_two(most):
    counts = token_counts(most)
    assert {1, most} <= set(counts)
    assert max(counts) == most
    for power in (2, 4, 16, 1024):
        if power < most:
            assert {power, power + 1} <= set(counts)
