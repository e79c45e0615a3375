"""Brings a server up and down: port, engine process, HTTP, signals. Imports no torch; the engine is another process.

That process is what a start waits for, so it comes first: what HTTP takes (its modules, the tokenizer) is brought in
while the engine loads.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pelton.config import ExecutorConfig, RandomWeights, ServeConfig
from pelton.engine.client import EngineClient
from pelton.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pelton.server.state import EngineClientLike
    from pelton.tokenizer.tokenizer import Tokenizer

SERVED_CHUNK = 2048
"""Default of chunked_prefill_size: a step with so many prompt tokens keeps a large GPU's multipliers busy."""
MAX_OPEN_FILES = 65_536
SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
    with bind(serve.host, serve.port) as listener:
        if serve.port_file is not None:
            _prepare_port_file(Path(serve.port_file))
        tokenizer_dir = engine_dir / "tokenizer" if random_weights is None else engine_dir

        def load_app() -> Callable[[EngineClientLike], ASGIApp]:
            return _load_app(tokenizer_dir, serve, model_name=model_name, is_optional=random_weights is not None)

        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_serve(lambda: EngineClient.start(engine_dir, executor, random_weights=random_weights),
                                     serve, listener, load_app))


def _load_app(tokenizer_dir: Path, serve: ServeConfig, *, model_name: str,
              is_optional: bool) -> Callable[[EngineClientLike], ASGIApp]:
    """What makes the app of an engine, with its modules imported and the tokenizer read.

    Args:
        is_optional: whether there may be no tokenizer.

    Raises:
        CheckpointError: the tokenizer is missing or damaged.
    """
    from pelton.server import http  # noqa: F401  uvicorn, wanted later
    from pelton.server.app import create_app

    tokenizer = _load_tokenizer(tokenizer_dir, serve, is_optional=is_optional)
    return lambda client: create_app(client, tokenizer, serve, model_name=model_name, tokenizer_dir=tokenizer_dir)


def _load_tokenizer(folder: Path, serve: ServeConfig, *, is_optional: bool) -> Tokenizer:
    from pelton.tokenizer.numbers import NumberTokenizer
    from pelton.tokenizer.tokenizer import Tokenizer

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


async def _serve(start_engine: Callable[[], Awaitable[EngineClientLike]], serve: ServeConfig, listener: socket.socket,
                 load_app: Callable[[], Callable[[EngineClientLike], ASGIApp]]) -> int:
    main = asyncio.current_task()
    assert main is not None
    try:
        _on_signals(main.cancel)
        try:
            client, make_app = await _load(start_engine, load_app)
        except asyncio.CancelledError:  # told to stop while loading
            return 0
        return await _run_server(client, make_app(client), serve, listener)
    finally:
        for signum in SIGNALS:  # uvloop would leave handlers of a closed loop behind
            asyncio.get_running_loop().remove_signal_handler(signum)


def _on_signals(act: Callable[[], object]) -> None:
    """What SIGTERM and SIGINT do from now on."""
    for signum in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(signum, act)


async def _run_server(client: EngineClientLike, app: ASGIApp, serve: ServeConfig, listener: socket.socket) -> int:
    """Serves until a signal comes, then ends the engine too."""
    from pelton.server.http import HttpServer

    port = listener.getsockname()[1]
    server = HttpServer(app, listener, is_verbose=serve.log_level == "debug",
                        on_started=lambda: _announce(serve, port))
    _on_signals(server.stop)
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


async def _load(start_engine: Callable[[], Awaitable[EngineClientLike]],
                load_app: Callable[[], Callable[[EngineClientLike], ASGIApp]]
                ) -> tuple[EngineClientLike, Callable[[EngineClientLike], ASGIApp]]:
    """Starts the engine, and loads the app on a thread meanwhile. If either fails or is cancelled, the engine ends."""
    engine = asyncio.ensure_future(start_engine())
    try:
        make_app = await asyncio.to_thread(load_app)
        return await engine, make_app
    except BaseException:
        if not engine.cancel() and not engine.cancelled() and engine.exception() is None:
            await engine.result().shutdown()
        await asyncio.gather(engine, return_exceptions=True)
        raise


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
