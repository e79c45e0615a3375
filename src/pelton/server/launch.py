"""Brings a server up and down: port, engine process, HTTP, signals. Imports no torch; the engine is another process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from pelton.config import ExecutorConfig, RandomWeights, ServeConfig
from pelton.engine.client import EngineClient
from pelton.errors import ConfigError
from pelton.server.app import create_app
from pelton.server.state import EngineClientLike
from pelton.tokenizer.numbers import NumberTokenizer
from pelton.tokenizer.tokenizer import Tokenizer

GRACE_S = 5
"""Running requests may go on for this long after SIGTERM or SIGINT; then they are cut."""
KEEP_ALIVE_S = 75
SERVED_CHUNK = 2048
"""Default of chunked_prefill_size: a step with so many prompt tokens keeps a large GPU's multipliers busy."""
BACKLOG = 2048
LAST_WORDS_S = 2.0
MAX_OPEN_FILES = 65_536
_log = logging.getLogger("pelton.server")


def run_serve(engine_dir: Path, serve: ServeConfig, executor: ExecutorConfig, *, model_name: str,
              random_weights: RandomWeights | None = None) -> int:
    """Serves an engine directory until SIGTERM or SIGINT; returns the exit code.

    Args:
        random_weights: make weights up; `engine_dir` then is a folder with a model's config.json.

    Raises:
        ConfigError: the port is taken or the address unusable. CheckpointError: the tokenizer is missing or damaged.
        EngineError, CapacityError, EngineDeadError: the engine could not start.
    """
    _set_up_logging(serve.log_level)
    _raise_file_limit()
    tokenizer_dir = engine_dir / "tokenizer" if random_weights is None else engine_dir
    tokenizer = _load_tokenizer(tokenizer_dir, serve, is_optional=random_weights is not None)
    with bind(serve.host, serve.port) as listener:
        if serve.port_file is not None:
            _prepare_port_file(Path(serve.port_file))

        def make_app(client: EngineClientLike) -> ASGIApp:
            return create_app(client, tokenizer, serve, model_name=model_name, tokenizer_dir=tokenizer_dir)

        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_serve(lambda: EngineClient.start(engine_dir, executor, random_weights=random_weights),
                                     serve, listener, make_app))


def _load_tokenizer(folder: Path, serve: ServeConfig, *, is_optional: bool) -> Tokenizer:
    if is_optional and serve.chat_template is None and not (folder / "tokenizer.json").exists():
        return NumberTokenizer()
    return Tokenizer.from_dir(folder, chat_template=serve.chat_template)


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address; 0 takes a free port. It does not listen yet.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM,
                                                             flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host {host!r} cannot be resolved: {error}") from None
    listener = socket.socket(family, kind, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _address_error(error, host, port) from None
    return listener


def _address_error(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is taken: choose another, or --port 0 for a free one")
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs privileges: choose one above 1023, or --port 0 for a free one")
    return ConfigError(f"host {host!r}, port {port}: {error.strerror}")


class HttpServer(uvicorn.Server):
    """uvicorn on a bound socket; leaves signals to its caller.

    Args:
        on_started: called once connections are accepted.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, *, is_verbose: bool = False,
                 on_started: Callable[[], None] = lambda: None):
        super().__init__(uvicorn.Config(
            app, http="httptools", ws="none", lifespan="off", log_config=None,
            log_level="debug" if is_verbose else "error", access_log=is_verbose, server_header=False,
            proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S))
        self._listener = listener
        self._on_started = on_started

    async def run_until_stopped(self) -> None:
        """Serves until `stop` is called.

        Raises:
            OSError: another program began to listen on the port since it was bound.
        """
        self._listener.listen(BACKLOG)  # uvloop would pass over a failure
        await self.serve(sockets=[self._listener])
        if tasks := list(self.server_state.tasks):  # cancelled, and saying so to their clients
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)

    def stop(self) -> None:
        """Ends the server gracefully; a second call ends it at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(start_engine: Callable[[], Awaitable[EngineClientLike]], serve: ServeConfig, listener: socket.socket,
                 make_app: Callable[[EngineClientLike], ASGIApp]) -> int:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, main.cancel)
    try:
        client = await start_engine()
    except asyncio.CancelledError:  # told to stop while loading
        return 0
    port = listener.getsockname()[1]
    server = HttpServer(make_app(client), listener, is_verbose=serve.log_level == "debug",
                        on_started=lambda: _announce(serve, port))
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, server.stop)
    watch = asyncio.create_task(_report_death(client))
    gc.collect()
    gc.freeze()  # what lives for good need not be walked again while requests come and go
    try:
        await server.run_until_stopped()
    except OSError as error:
        raise _address_error(error, serve.host, port) from None
    finally:
        watch.cancel()
        await client.shutdown()
    return 0


def _announce(serve: ServeConfig, port: int) -> None:
    host = f"[{serve.host}]" if ":" in serve.host else serve.host
    if serve.port_file is not None:
        _write_whole(Path(serve.port_file), f"{port}\n")
    print(f"Ready: http://{host}:{port}", flush=True)


async def _report_death(client: EngineClientLike) -> None:
    while client.is_alive:
        await asyncio.sleep(1.0)
    _log.error("the engine process has ended; every request is answered with 503 until the server is restarted")


def _prepare_port_file(file: Path) -> None:
    """Removes the file of an earlier run and finds out early whether a new one can be written."""
    try:
        file.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ConfigError(f"port_file {str(file)!r} cannot be written: {error.strerror}") from None


def _write_whole(file: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(name, file)


def _set_up_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _raise_file_limit() -> None:
    """Each stream is an open file; many systems allow 1,024 at first and more on request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
