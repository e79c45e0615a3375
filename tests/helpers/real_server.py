"""`pelton serve` as users start it: a process of its own with its engine process behind it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

MODEL = "pelton-tiny"
MAX_SEQ_LEN = 512
OPTIONS = ("--num-threads", "1", "--max-blocks", "64", "--max-seq-len", str(MAX_SEQ_LEN),
           "--dtype", "float32")  # exact enough for equal greedy tokens
DEADLINE_S = 60.0


@dataclass
class RealServer:
    """A server that is ready."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def engine_pid(self) -> int:
        """Of its engine process (Linux)."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Ends it and checks that it ended well."""
        self.process.send_signal(signum)
        assert self.process.wait(DEADLINE_S) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=DEADLINE_S)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """(name, label values...) -> value."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}

    def until_idle(self) -> dict[tuple[str, ...], float]:
        """Metrics once the engine has let go of everything."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            samples = self.metrics()
            names = ("pelton_requests_running", "pelton_requests_waiting", "pelton_kv_blocks_used")
            if not any(samples[name,] for name in names):
                return samples
            assert time.monotonic() < deadline, samples


def launch(log: Path, *options: str, model: str = MODEL, **popen: object) -> subprocess.Popen[str]:
    """Starts a server on a free port without waiting for it; its standard error goes to `log`."""
    command = [sys.executable, "-m", "pelton.cli", "serve", model, "--port", "0", *OPTIONS, *options]
    with log.open("wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **popen)


def until_ready(process: subprocess.Popen[str], log: Path) -> RealServer:
    line = process.stdout.readline()
    assert line.startswith("Ready: "), log.read_text()
    return RealServer(line.removeprefix("Ready: ").strip(), process, log)


@contextlib.contextmanager
def serving(log: Path, *options: str, **popen: object) -> Iterator[RealServer]:
    """A server for the length of the block; whatever happens there, nothing is left over."""
    process = launch(log, *options, **popen)
    try:
        yield until_ready(process, log)
    finally:
        process.kill()  # does nothing to one that has ended; its engine process goes with it
        process.wait(DEADLINE_S)
        process.stdout.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(pid: int) -> None:
    """Waits for a process that is nobody's child here."""
    deadline = time.monotonic() + DEADLINE_S
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
