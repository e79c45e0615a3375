"""Starts the watching process and turns what it wrote into series."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from pelton.bench.monitors.reading import Line, Missing
from pelton.bench.results import Series

END_TIMEOUT_S = 10.0
_lines = msgspec.json.Decoder(Line)


@dataclass
class _Readings:
    """A series on the benchmark's clock."""

    source: Literal["gpu", "server"]
    name: str
    unit: str
    labels: dict[str, str]
    at_ns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def since(self, epoch_ns: int) -> Series:
        return Series(source=self.source, name=self.name, unit=self.unit, labels=self.labels, values=list(self.values),
                      at_us=[(at - epoch_ns) // 1000 for at in self.at_ns])


class Watch:
    """GPUs and server metrics, watched from `start` to `stop`.

    Args:
        gpus: indices to watch, () for all; none: no GPUs.
        metrics_url: where the server shows Prometheus metrics; none: they are not read.
    """

    def __init__(self, *, gpus: tuple[int, ...] | None, metrics_url: str | None) -> None:
        self._gpus, self._metrics_url = gpus, metrics_url
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_read = 0  # bytes of the file
        self._found: dict[tuple[object, ...], _Readings] = {}
        self._missing: list[str] = []

    def start(self) -> None:
        if self._gpus is None and self._metrics_url is None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="pelton-watch-")
        self._file.touch()
        command = [sys.executable, "-m", "pelton.bench.monitors.process", str(self._file)]
        if self._gpus is not None:
            command += [f"--gpus={','.join(map(str, self._gpus))}"]
        if self._metrics_url is not None:
            command += ["--metrics-url", self._metrics_url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)

    def read(self, epoch_ns: int) -> tuple[list[Series], list[str]]:
        """The series so far, in microseconds since `epoch_ns`, and what could not be watched.

        May be called while watching, and reads only what is new.
        """
        if self._folder is not None:
            self._read_on()
        return [readings.since(epoch_ns) for readings in self._found.values()], list(self._missing)

    def _read_on(self) -> None:
        with self._file.open("rb") as file:
            file.seek(self._num_read)
            whole, end, _ = file.read().rpartition(b"\n")  # an unfinished last line is left for the next time
        self._num_read += len(whole) + len(end)
        for line in whole.splitlines():
            entry = _lines.decode(line)
            if isinstance(entry, Missing):
                self._missing.append(entry.reason)
                continue
            for name, unit, labels, value in entry.values:
                key = (entry.source, name, *sorted(labels.items()))
                if key not in self._found:
                    self._found[key] = _Readings(entry.source, name, unit, labels)
                self._found[key].at_ns.append(entry.at_ns)
                self._found[key].values.append(value)

    def stop(self) -> None:
        """Ends the watching process; what it wrote can still be read until `close`."""
        if self._process is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stops, and removes what was written."""
        self.stop()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()
            self._folder = None

    @property
    def _file(self) -> Path:
        return Path(self._folder.name) / "readings.jsonl"
