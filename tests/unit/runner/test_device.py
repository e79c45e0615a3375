"""Queues, the packing of host arrays, and which graphs and warm-up steps there are."""

import random
import threading

import numpy as np
import pytest
import torch

from pelton.runner.device import CpuQueue, PinnedStaging, make_staging, one_thread, pack, pack_places, unpack


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


def test_a_call_returns_or_raises_what_the_job_does():
    queue, threads = CpuQueue(1), []
    queue.submit(lambda: threads.append(threading.current_thread()))
    assert queue.call(lambda: (torch.is_inference_mode_enabled(), torch.get_num_threads())) == (True, 1)
    with pytest.raises(ValueError, match="no weights"):
        queue.call(lambda: int("no weights"))
    assert queue.call(threading.current_thread) is threads[0]
    queue.close()


def test_one_thread_for_a_while():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


class Copied:
    """An event of a copy that the test, or whoever waits for it, lets be made."""

    num_made = 0
    all: list = []  # noqa: RUF012

    def __init__(self):
        self.number = len(Copied.all)
        Copied.all.append(self)

    def record(self):
        pass

    def query(self):
        return self.number < Copied.num_made

    def synchronize(self):
        Copied.num_made = max(Copied.num_made, self.number + 1)


@pytest.fixture
def staging(monkeypatch):
    """The ring of a GPU over plain memory of 1,024 bytes."""
    monkeypatch.setattr(torch.cuda, "Event", Copied)
    monkeypatch.setattr(Copied, "num_made", 0)
    monkeypatch.setattr(Copied, "all", [])

    def resize(self, capacity_bytes):
        self._ring = torch.empty(capacity_bytes, dtype=torch.uint8)
        self._bytes, self._head = self._ring.numpy(), 0

    monkeypatch.setattr(PinnedStaging, "_resize", resize)
    return PinnedStaging(torch.device("cpu"), 1024)


def test_copies_that_were_made_are_forgotten(staging):
    """Else every call would look at all that the ring ever held, which after some minutes takes longer than a step."""
    for _ in range(1000):
        staging.put(np.zeros(1, dtype=np.int64))
        Copied.num_made = len(Copied.all)
        assert len(staging._copies) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_written_over_before_its_copy_was_made(staging, seed):
    draw = random.Random(seed)
    for _ in range(300):
        values = np.array(draw.choices(range(100), k=draw.randint(1, 60)), dtype=np.int64)
        (tensor,) = staging.put(values)
        assert tensor.tolist() == values.tolist()
        pending = [(start, stop) for start, stop, event in staging._copies if not event.query()]
        assert all(a[1] <= b[0] or b[1] <= a[0] for i, a in enumerate(pending) for b in pending[:i])
        Copied.num_made = max(Copied.num_made, draw.randint(0, len(Copied.all)))
