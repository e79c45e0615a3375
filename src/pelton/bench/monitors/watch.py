"""Starts the watching process and turns what it wrote into series."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from pelton.bench.monitors.reading import Line, Missing
from pelton.bench.results import Series

END_TIMEOUT_S = 10.0


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

        May be called while watching.
        """
        if self._folder is None:
            return [], []
        found: dict[tuple[str, str, tuple[tuple[str, str], ...]], Series] = {}
        missing = []
        for line in self._file.read_bytes().split(b"\n")[:-1]:  # an unfinished last line is left for the next time
            entry = msgspec.json.decode(line, type=Line)
            if isinstance(entry, Missing):
                missing.append(entry.reason)
                continue
            at_us = (entry.at_ns - epoch_ns) // 1000
            for name, unit, labels, value in entry.values:
                key = (entry.source, name, tuple(sorted(labels.items())))
                if key not in found:
                    found[key] = Series(source=entry.source, name=name, unit=unit, labels=labels, at_us=[], values=[])
                found[key].at_us.append(at_us)
                found[key].values.append(value)
        return list(found.values()), missing

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
