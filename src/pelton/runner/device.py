"""Where a step's work is queued, and how host arrays get to it: a thread for a CPU, a stream for a GPU.

Both queues run jobs in the order they were submitted and give a signal that is set when all before it are done. A job
for a GPU runs at once in the caller's thread, and what it launches is what is queued: it must not wait for the device.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import torch

from pelton.host import has_spare_cores

Job = Callable[[], None]
T = TypeVar("T")
_ALIGN_BYTES = 16


class Signal(Protocol):
    """Set once the work queued before it is done."""

    def wait(self) -> object: ...


class CpuQueue:
    """One thread that runs jobs under inference mode: the CPU's stand-in for a device stream. A job deals with its own
    errors; one that gets out is a defect and is raised in the thread, which ends.

    It should be the only thread whose torch operators run in parallel: OpenMP gives every thread that starts parallel
    work helpers of its own and keeps them, and where there are more of them than cores, GCC's (libgomp) has all sleep
    at once between operators instead of looking for work. On two cores that made steps two to three times as long.

    Args:
        num_threads: of torch's operators; none leaves torch's own choice.
    """

    def __init__(self, num_threads: int | None = None):
        self._num_threads = num_threads
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pelton-runner", daemon=True)
        self._is_closed = False
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""
        if self._is_closed:
            raise RuntimeError("the runner is closed")
        self._jobs.put(job)

    def call(self, work: Callable[[], T]) -> T:
        """Runs something after the jobs submitted so far, waits, and returns or raises what it does."""
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self.submit(job)
        return done.result()

    def signal(self) -> Signal:
        """Set once the jobs submitted so far have run."""
        done = threading.Event()
        self._jobs.put(done.set)
        return done

    def close(self) -> None:
        """Runs what is queued, then ends the thread. More than once does no harm."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        if self._num_threads is not None:  # torch keeps this per thread that starts parallel work
            torch.set_num_threads(self._num_threads)
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                job()


@contextmanager
def one_thread() -> Iterator[None]:
    """Has the calling thread's torch operators start no parallel work in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _EventSignal:
    """A CUDA event. Who waits looks again and again where cores are plenty, and sleeps where they are few: to be woken
    took 0.2 to 0.6 ms on the host of an H200."""

    def __init__(self, stream: torch.cuda.Stream, *, sleeps: bool):
        self._event = torch.cuda.Event(blocking=sleeps)
        self._event.record(stream)

    def wait(self) -> None:
        self._event.synchronize()


class CudaQueue:
    """A stream of its own on a GPU. Jobs find what the thread that made the queue had queued by then."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self._sleeps = not has_spare_cores()
        self._is_closed = False
        self.wait_for_caller()

    def wait_for_caller(self) -> None:
        """Jobs submitted from now on run after all that this thread has queued on its current stream.

        To be called after making tensors that jobs use: streams do not wait for each other, and memory that was freed
        on one may hold a tensor used on another while kernels that read its old content are still to run.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def submit(self, job: Job) -> None:
        """Runs a job now, with the stream as the current one."""
        if self._is_closed:
            raise RuntimeError("the runner is closed")
        caller = torch.cuda.current_stream(self.stream.device)
        torch.cuda.set_stream(self.stream)  # as its context manager does, in fewer calls
        try:
            with torch.inference_mode():
                job()
        finally:
            torch.cuda.set_stream(caller)

    def signal(self) -> Signal:
        return _EventSignal(self.stream, sleeps=self._sleeps)

    def close(self) -> None:
        """Waits for what is queued. More than once does no harm."""
        self._is_closed = True
        self.stream.synchronize()


def make_queue(device: torch.device) -> CpuQueue | CudaQueue:
    return CudaQueue(device) if device.type == "cuda" else CpuQueue()


class HostStaging:
    """Host arrays as tensors over the same memory, for a CPU."""

    def put(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]


class PinnedStaging:
    """Host arrays to the device, all of one call in one asynchronous copy from page-locked memory.

    The memory is a ring: a region is written again once its copy has been made, which is waited for only if the ring
    is too small for the calls in flight.

    Args:
        capacity_bytes: of the ring; arrays of one call that need more make it grow.
    """

    def __init__(self, device: torch.device, capacity_bytes: int):
        self.device = device
        self._copies: deque[tuple[int, int, torch.cuda.Event]] = deque()  # (start, stop) of the ring, oldest first
        self._head = 0
        self._resize(capacity_bytes)

    def put(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Copies arrays on the current stream. Returns tensors of their shapes and types."""
        places, num_bytes = pack_places(arrays)
        target = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        self.write_into(target, num_bytes, lambda out: pack(arrays, places, out))
        return unpack(target, arrays, places)

    def write_into(self, target: torch.Tensor, num_bytes: int, write: Callable[[np.ndarray], None]) -> None:
        """Copies what `write` puts into page-locked memory, [num_bytes] uint8, on the current stream to the beginning
        of target, [n] uint8 on the device."""
        start = self._reserve(num_bytes)
        write(self._bytes[start:start + num_bytes])
        target[:num_bytes].copy_(self._ring[start:start + num_bytes], non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._copies.append((start, start + num_bytes, copied))

    def _reserve(self, num_bytes: int) -> int:
        """Where num_bytes can be written; waits for copies still to be made from there."""
        if num_bytes > len(self._bytes):
            while self._copies:
                self._copies.popleft()[2].synchronize()
            self._resize(2 * num_bytes)
        if self._head + num_bytes > len(self._bytes):
            self._head = 0
        start, stop = self._head, self._head + num_bytes
        while self._copies and self._copies[0][2].query():  # made, as all before it: it is in nobody's way
            self._copies.popleft()
        while self._copies and self._is_in_the_way(start, stop):
            self._copies.popleft()[2].synchronize()
        self._head = stop
        return start

    def _is_in_the_way(self, start: int, stop: int) -> bool:
        return any(begin < stop and start < end for begin, end, _ in self._copies)

    def _resize(self, capacity_bytes: int) -> None:
        self._ring = torch.empty(capacity_bytes, dtype=torch.uint8, pin_memory=True)
        self._bytes = self._ring.numpy()
        self._head = 0


def pack_places(arrays: tuple[np.ndarray, ...]) -> tuple[list[int], int]:
    """Where each array begins when all are laid end to end, aligned, and the bytes they take."""
    places, head = [], 0
    for array in arrays:
        places.append(head)
        head += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
    return places, max(head, _ALIGN_BYTES)


def pack(arrays: tuple[np.ndarray, ...], places: list[int], out: np.ndarray) -> None:
    """Writes arrays to their places in out, [n] uint8."""
    for array, place in zip(arrays, places, strict=True):
        out[place:place + array.nbytes].view(array.dtype)[:] = array.reshape(-1)


def unpack(packed: torch.Tensor, arrays: tuple[np.ndarray, ...], places: list[int]) -> list[torch.Tensor]:
    """The tensors that lie in packed, [n] uint8, with the arrays' shapes and types."""
    tensors = []
    for array, place in zip(arrays, places, strict=True):
        dtype = _TORCH_TYPES[array.dtype.str]
        tensors.append(packed[place:place + array.nbytes].view(dtype).view(array.shape))
    return tensors


_TORCH_TYPES = {np.dtype(name).str: getattr(torch, name) for name in ("int64", "int32", "float32", "bool")}


def make_staging(device: torch.device, capacity_bytes: int) -> HostStaging | PinnedStaging:
    return PinnedStaging(device, capacity_bytes) if device.type == "cuda" else HostStaging()


def page_locked(num_rows: int, dtype: torch.dtype, *, num_rows_kept: int) -> torch.Tensor:
    """[num_rows] on the host, which kernels can write to. Read it once an event after them has come.

    The allocator does not know of such kernels, so all of them belong on one stream: then memory that is used again is
    written to later, in order.

    Args:
        num_rows_kept: the most rows there can be: memory of that size is taken, which the allocator then has ready for
            the next call.
    """
    return torch.empty(num_rows_kept, dtype=dtype, pin_memory=True)[:num_rows]


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where the host can read it once the stream has got there; on a CPU, itself."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
