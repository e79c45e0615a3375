"""uvicorn on a socket that is bound already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

GRACE_S = 5
"""Running requests may go on for this long after SIGTERM or SIGINT; then they are cut."""
KEEP_ALIVE_S = 75
BACKLOG = 2048
LAST_WORDS_S = 2.0


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
