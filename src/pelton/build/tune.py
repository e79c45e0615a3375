"""Has an engine rehearsed on the GPU it is for, in a process beside this one, and gathers what comes of it.

The process is `python -m pelton.runner.rehearsal`, started by name: build and runner share no code. What it measured is
remembered per type of GPU (measurements.py), so that only what is not known yet is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelton.build.layout import Tuning
from pelton.build.measurements import MeasurementCache
from pelton.build.replaced import REHEARSED, rehearsal_digest
from pelton.config import Dtype, ModelConfig, ParallelConfig, to_dict
from pelton.errors import EngineDeadError, PeltonError, error_of_kind
from pelton.host import Gpu
from pelton.manifest import KERNELS_DIR, Limits

if TYPE_CHECKING:
    from pelton.kernels.linear.choices import Measurement

JOB_NAME = ".rehearsal.json"
REHEARSAL = "pelton.runner.rehearsal"


@dataclass
class Rehearsal:
    """What a rehearsal has said so far."""

    known: list[Measurement]
    measured: list[Measurement] = field(default_factory=list)
    setting: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    num_missing: int = 0
    num_kernels: int = 0
    not_kept: str = ""
    """Why not all kernels were compiled and kept."""
    error: PeltonError | None = None

    @property
    def measurements(self) -> list[Measurement]:
        """All, in the order of tuning.json."""
        return sorted([*self.known, *self.measured],
                      key=lambda m: (m.n * m.k, m.n, m.is_gated, m.num_rows))

    def take(self, news: dict[str, Any]) -> None:
        """Notes one line of the other process."""
        from pelton.kernels.linear.measured import read_measurements

        match news:
            case {"setting": setting, "num_missing": num_missing}:
                self.setting, self.num_missing = setting, num_missing
            case {"measured": entry}:
                self.measured += read_measurements([entry])
            case {"limits": limits}:
                self.limits = limits
            case {"kernels": num_kernels}:
                self.num_kernels = num_kernels
            case {"not_kept": reason}:
                self.not_kept = reason
            case {"error": {"kind": kind, "message": message}}:
                self.error = error_of_kind(kind, message)

    def to_json(self, gpu: str) -> dict[str, Any]:
        """The content of tuning.json."""
        return {"is_tuned": True, "gpu": gpu, **self.setting, "limits": self.limits,
                "choices": [measurement.to_json() for measurement in self.measurements]}


class Rehearser:
    """Runs a rehearsal while something else is done. Use it as a context; leaving it early ends the process.

    Args:
        staging: the engine directory in the making; kernels are kept in it.
        tuning: "again" measures what is known already too.
        cache: the folder of what can be made again.
        on_news: called with the rehearsal after every line, on another thread.
    """

    def __init__(self, staging: Path, *, model: ModelConfig, limits: Limits, dtype: Dtype, parallel: ParallelConfig,
                 gpu: Gpu, tuning: Tuning, cache: Path, on_news: Callable[[Rehearsal], None] = lambda _: None):
        from pelton.kernels.linear.measured import Setting
        from pelton.kernels.linear.tuning import model_products

        self._job_file = staging / JOB_NAME
        self._architecture = gpu.architecture
        self._dtype = dtype
        self._products = model_products(model, tp_size=parallel.tp_size)
        self._setting = Setting.here(gpu.name, int(gpu.architecture.removeprefix("sm_")), gpu.driver)
        self._cache = MeasurementCache(cache, self._setting)
        known = [] if tuning == "again" else self._cache.find(self._products, dtype)
        self._rehearsal = Rehearsal(known)
        self._on_news = on_news
        keeps_kernels = parallel.world_size == 1
        self._job = {"model": to_dict(model), "limits": to_dict(limits), "dtype": dtype, "tp_size": parallel.tp_size,
                     "gpu_name": gpu.name, "driver": gpu.driver, "known": [m.to_json() for m in known],
                     "kernels_dir": str(staging / KERNELS_DIR) if keeps_kernels else None}
        if not keeps_kernels:
            self._rehearsal.not_kept = f"the engine has {parallel.world_size} ranks, and one was rehearsed"

    @property
    def digest(self) -> str:
        """Of what this rehearsal comes to with the measurements there are now; empty where not all kernels are kept."""
        if self._rehearsal.not_kept:
            return ""
        same = {name: self._job[name] for name in ("model", "limits", "dtype", "tp_size", "gpu_name")}
        return rehearsal_digest({**same, "torch": self._setting.torch, "triton": self._setting.triton,
                                 "choices": [m.to_json() for m in self._rehearsal.measurements]})

    def __enter__(self) -> Rehearser:
        self._job_file.write_text(json.dumps(self._job))
        command = [sys.executable, "-P", "-m", REHEARSAL, "--job", str(self._job_file)]
        # The pipe to its standard input is its lifeline. A session of its own: Ctrl-C is for this process alone.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         start_new_session=True)
        # Waited for instead of the thread: in Python 3.11 a `join` that Ctrl-C broke off makes the next return at once.
        self._is_read = threading.Event()
        threading.Thread(target=self._read, name="rehearsal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        with self._process:
            self._is_read.wait()
        self._job_file.unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """Waits for the end, and remembers what was measured. Returns the content of tuning.json.

        Raises:
            PeltonError: as the other process said. EngineDeadError: it died.
        """
        self._is_read.wait()
        code = self._process.wait()
        if self._rehearsal.error is not None:
            raise self._rehearsal.error
        if code != 0:
            raise EngineDeadError(f"tuning ended with code {code}; what it said is above. --tuning off builds without")
        self._cache.record(self._products, self._dtype, self._rehearsal.measurements)
        content = self._rehearsal.to_json(self._architecture)
        return {**content, REHEARSED: self.digest} if self.digest else content

    @property
    def not_kept(self) -> str:
        """Why not all kernels were compiled and kept; empty: they were."""
        return self._rehearsal.not_kept

    def _read(self) -> None:
        try:
            for line in self._process.stdout:
                self._rehearsal.take(json.loads(line))
                self._on_news(self._rehearsal)
        finally:
            self._is_read.set()
