"""Weights from a file to a GPU: threads read, check and copy chunks, each through page-locked memory of its own.

No tensor is ever whole in main memory, and reading, hashing and copying go on at once: what is slowest of the disk,
the cores and the bus sets the pace. Whoever needs the tensors' addresses alone need not wait: kernels can be loaded
meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import torch

from pelton.hashing import CHUNK_BYTES
from pelton.manifest import Manifest, drain_checked, verify_files

PAD_PREFIX = "_pad."
"""Of names of fillers between tensors, see checkpoint/writer.py."""
_MAX_THREADS = 16
_log = logging.getLogger("pelton.runner")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    stop: int


class _DeviceSink:
    """Copies a thread's chunks into the tensors they belong to, on a stream of the thread's own.

    Args:
        tensors: flat byte views of the tensors on the device, in the order of `places`.
    """

    def __init__(self, places: list[Place], tensors: list[torch.Tensor], device: torch.device):
        self._places, self._tensors = places, tensors
        self._starts = [place.start for place in places]
        is_gpu = device.type == "cuda"
        # Streams come from rings, one per priority: no copy may land in a stream that another runner captures.
        self._stream = torch.cuda.Stream(device, priority=-1) if is_gpu else None
        self._buffers = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if is_gpu else None
        self._turn = 0

    def buffer(self) -> memoryview:
        if self._copied is not None:
            self._copied[self._turn].synchronize()
        return memoryview(self._buffers[self._turn].numpy())

    def take(self, offset: int, num_bytes: int) -> None:
        with torch.cuda.stream(self._stream):
            self._copy(offset, num_bytes)
            if self._copied is not None:
                self._copied[self._turn].record()
        self._turn = 1 - self._turn

    def finish(self) -> None:
        """Waits until all copies are made."""
        if self._stream is not None:
            self._stream.synchronize()

    def _copy(self, offset: int, num_bytes: int) -> None:
        stop = offset + num_bytes
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._places) and self._places[index].start < stop:
            place = self._places[index]
            begin, end = max(offset, place.start), min(stop, place.stop)
            if begin < end:
                self._tensors[index][begin - place.start:end - place.start].copy_(
                    self._buffers[self._turn][begin - offset:end - offset], non_blocking=True)
            index += 1


class WeightUpload:
    """The tensors of one safetensors file of an engine, on a device at once, and filled while the caller goes on.

    They begin as zeros, so that kernels which read them too early find finite numbers. `wait` must be called before
    their values count.

    Attributes:
        tensors: by name.
        num_bytes: of all of them.
        seconds: what it took; known after `wait`.

    Raises:
        EngineError: the file is missing, or its header is damaged.
    """

    def __init__(self, engine_dir: Path, manifest: Manifest, name: str, device: torch.device, *,
                 threads: int | None = None):
        try:
            places = _read_places(engine_dir / name)
        except (OSError, ValueError, KeyError, TypeError):
            verify_files(engine_dir, manifest, names=[name])  # says what is wrong with the file
            raise
        self.tensors = {place.name: torch.zeros(place.shape, dtype=place.dtype, device=device) for place in places}
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self.seconds = 0.0
        self._flat = [tensor.view(-1).view(torch.uint8) if tensor.numel() else tensor
                      for tensor in self.tensors.values()]
        self._source = engine_dir, manifest, name
        self._is_gpu = device.type == "cuda"
        self._error: Exception | None = None
        if self._is_gpu:  # the zeros come first, and kernels that read what was in this memory before
            torch.cuda.current_stream(device).synchronize()
        num_threads = threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        self._thread = threading.Thread(target=self._run, args=(places, device, num_threads), name="weights",
                                        daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, torch.Tensor]:
        """Returns the tensors once all are there; may be called again.

        Raises:
            EngineError: the file is damaged.
        """
        self._thread.join()
        if self._flat and self._is_gpu:
            getattr(torch._C, "_host_emptyCache", int)()  # page-locked memory that nothing of this size wants again
        self._flat = []
        if self._error is not None:
            raise self._error
        return self.tensors

    def _run(self, places: list[Place], device: torch.device, num_threads: int) -> None:
        began, sinks = time.perf_counter(), []

        def make_sink() -> _DeviceSink:
            sinks.append(_DeviceSink(places, self._flat, device))
            return sinks[-1]

        try:
            drain_checked(*self._source, make_sink, threads=num_threads)
            for sink in sinks:
                sink.finish()
        except Exception as error:
            self._error = error
            return
        self.seconds = time.perf_counter() - began
        _log.info("weights: %.2f GB checked and loaded in %.2f s, %.1f GB/s", self.num_bytes / 1e9, self.seconds,
                  self.num_bytes / 1e9 / self.seconds)


def _read_places(path: Path) -> list[Place]:
    """The tensors of a safetensors file (8 bytes of length, a JSON header, the data) in the order of their data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    places = [Place(name, _DTYPES[entry["dtype"]], tuple(entry["shape"]),
                    *(8 + length + offset for offset in entry["data_offsets"]))
              for name, entry in header.items() if name != "__metadata__" and not name.startswith(PAD_PREFIX)]
    return sorted(places, key=lambda place: (place.start, place.stop))
