"""A server process: started in a session of its own, waited for until healthy, always stopped with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pelton.bench.engines.recipe import Engine, fill_text, split_command
from pelton.errors import ServerError

POLL_S = 0.2
STOP_S = 20.0  # from asking a server to end to ending it
TAIL_BYTES = 1500
# No proxy of the environment stands between here and a server on this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@contextlib.contextmanager
def running(engine: Engine, log: Path) -> Iterator[str]:
    """The engine's address while the block runs. Its output goes to the end of `log`, which is kept.

    Raises:
        ServerError: it cannot be started, ends, does not become healthy in time, or a command of its setup fails.
    """
    if engine.command is None:
        _wait_until_healthy(engine, engine.url, None, log)
        yield engine.url
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = _start(engine, engine.command, port, log)
    try:
        _wait_until_healthy(engine, url, process, log)
        for command in engine.setup:
            _run_setup(engine, command, port, log)
        yield url
    finally:
        stop(process)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM ends this program through its `finally`s, so that no server is left behind."""
    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process's whole group to end, and ends what has not in time. Nothing of the group is left."""
    _signal(process, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, signal.SIGKILL)  # children that outlived the leader too
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _start(engine: Engine, command: str, port: int, log: Path, **options: object) -> subprocess.Popen[bytes]:
    where = f"engine {engine.name!r}"
    values = {"port": str(port)}
    words = split_command(fill_text(command, values, where=where), where=where)
    env = {**os.environ, **{key: fill_text(value, values, where=where) for key, value in engine.env.items()}}
    with log.open("ab") as output:
        output.write(f"$ {command.replace('${port}', str(port))}\n".encode())
        output.flush()
        try:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env,
                                    start_new_session=True)
        except OSError as error:
            raise ServerError(f"{where} cannot be started: {words[0]}: {error.strerror or error}; check the command in "
                              "the recipe") from None


def _run_setup(engine: Engine, command: str, port: int, log: Path) -> None:
    process = _start(engine, command, port, log)
    try:
        status = process.wait(engine.ready_timeout_s)
    except subprocess.TimeoutExpired:
        raise ServerError(f"engine {engine.name!r}: {command!r} took more than {engine.ready_timeout_s:g} s; see "
                          f"{log}") from None
    finally:
        stop(process)
    if status:
        raise ServerError(f"engine {engine.name!r}: {command!r} ended with status {status}: {tail(log)}")


def _wait_until_healthy(engine: Engine, url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    deadline = time.monotonic() + engine.ready_timeout_s
    address = url.rstrip("/") + engine.health
    while True:
        said = _ask(address)
        if said == "200":
            return
        if process is not None and process.poll() is not None:
            raise ServerError(f"engine {engine.name!r} ended with status {process.returncode} before it was healthy: "
                              f"{tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"engine {engine.name!r} was not healthy after {engine.ready_timeout_s:g} s ({address}: "
                              f"{said})" + ("" if process is None else f": {tail(log)}"))
        time.sleep(POLL_S)


def _ask(address: str) -> str:
    """The status of the answer, or what went wrong."""
    try:
        with _open(address, timeout=10.0) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError as error:  # URLError and time-outs are OSErrors
        return str(error)


def tail(log: Path) -> str:
    """The end of a log on one line, and where the rest is."""
    text = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
    return f"{' '.join(text.split())[-400:]} (all of it: {log})"
