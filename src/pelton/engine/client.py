"""The server's side of an engine process: starts it, sends requests, hands each its news. asyncio, no torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from pelton.config import ExecutorConfig, RandomWeights, to_dict
from pelton.engine import messages
from pelton.engine.channel import ServerEnd, socket_pair
from pelton.engine.messages import Ready, Stats
from pelton.errors import EngineDeadError, RequestError, error_of_kind
from pelton.types import Output, Request

LAST_WORDS_S = 0.5
"""How long a message may take that was sent just before the process ended."""
SHUTDOWN_S = 10.0
ENGINE = ("-P", "-m", "pelton.engine.process")
"""What Python is started with. -P: files of the working directory are no modules."""


class EngineClient:
    """One engine process and the requests in it.

    Make it with `await EngineClient.start(engine_dir, config)`. All methods belong to one event loop.
    """

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process
        self._queues: dict[str, asyncio.Queue[Output | None]] = {}
        self._open: dict[str, set[int]] = {}  # request id -> completions whose end is not known here
        self._stats_waiters: list[asyncio.Future[Stats]] = []
        self._failure: str | None = None
        self._has_failed = asyncio.Event()
        self._beginning: asyncio.Future[Ready | messages.Failed] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None
        self._channel = ServerEnd(self._take)
        self.ready: Ready

    @classmethod
    async def start(cls, engine_dir: Path, config: ExecutorConfig, *,
                    random_weights: RandomWeights | None = None) -> EngineClient:
        """Starts the process and waits until it has loaded.

        Args:
            random_weights: make weights up; `engine_dir` then is a folder with a model's config.json.

        Raises:
            EngineError, ConfigError, CapacityError: as the engine found on loading; EngineDeadError: it just died.
            MissingPartError: torch is not installed.
        """
        ours, theirs = socket_pair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, *ENGINE, "--engine", str(engine_dir), "--socket", str(theirs.fileno()),
                    "--config", json.dumps(to_dict(config)), *_weights_options(random_weights),
                    "--log-level", logging.getLevelName(logging.getLogger().getEffectiveLevel()),
                    pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.PIPE,
                    start_new_session=True)  # its own session: Ctrl-C is for the server alone
            except BaseException:
                ours.close()
                raise
        client = cls(process)
        try:
            await client._connect(ours)
        except BaseException:
            await client._tear_down()
            raise
        client._watcher = asyncio.create_task(client._watch())
        return client

    @property
    def is_alive(self) -> bool:
        return self._failure is None

    async def generate(self, request: Request) -> AsyncIterator[Output]:
        """Runs a request; yields its news until all n completions have ended. Closing the iterator cancels it.

        Raises:
            RequestError: its id is in use, or a field is of the wrong type. EngineDeadError: the process ended.
        """
        self._check_alive()
        request_id = request.request_id
        if request_id in self._queues:
            raise RequestError(f"request_id {request_id!r} is in use", param="request_id")
        news: asyncio.Queue[Output | None] = asyncio.Queue()
        still_open = set(range(request.sampling_params.n))
        self._queues[request_id], self._open[request_id] = news, still_open
        try:
            self._channel.send(messages.encode_add(request))
            while still_open:
                output = await news.get()
                if output is None:
                    self._check_alive()
                    continue  # `finish` ended a completion
                if output.index in still_open:
                    if output.finish_reason is not None:
                        still_open.discard(output.index)
                    yield output
        finally:
            del self._queues[request_id], self._open[request_id]
            if still_open and self._failure is None:
                self._channel.send(messages.encode(messages.Cancel(request_id)))

    async def finish(self, request_id: str, index: int, num_tokens: int) -> None:
        """A stop string ended completion `index` after `num_tokens` output tokens; no more news of it follows."""
        still_open = self._open.get(request_id)
        if still_open is not None and index in still_open:
            still_open.discard(index)
            self._queues[request_id].put_nowait(None)
            if self._failure is None:
                self._channel.send(messages.encode(messages.Finish(request_id, index, num_tokens)))

    async def stats(self) -> Stats:
        """The engine's state at one moment between two steps."""
        self._check_alive()
        waiter: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._channel.send(messages.encode(messages.GetStats()))
        return await waiter

    async def shutdown(self) -> None:
        """Asks the process to end and waits for it; kills it after ten seconds. May be called twice."""
        try:
            if self._failure is None:
                self._failure = "it was shut down"
                self._channel.send(messages.encode(messages.Shutdown()))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), SHUTDOWN_S)
        finally:
            self._wake_all()
            await self._tear_down()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._death()

    async def _connect(self, ours: socket.socket) -> None:
        """Waits until the engine has loaded, or says why it has not."""
        await self._channel.open(ours)
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({self._beginning, ended}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({self._beginning}, timeout=LAST_WORDS_S)  # they may still be on the way
            if not self._beginning.done():
                raise EngineDeadError(f"the engine process {_fate(ended.result())} while loading; "
                                      "what it said is above")
        finally:
            ended.cancel()
        message = self._beginning.result()
        if isinstance(message, messages.Failed):
            raise error_of_kind(message.kind, message.message, EngineDeadError)
        self.ready = message

    def _take(self, frame: bytes) -> None:
        try:
            self._handle(messages.decode_from_engine(frame))
        except Exception as error:  # nothing more will come through: nobody may wait for it
            self._fail(f"it cannot be understood any more ({type(error).__name__}: {error})")

    def _handle(self, message: messages.FromEngine) -> None:
        match message:
            case messages.Outputs(outputs):
                for output in outputs:
                    news = self._queues.get(output.request_id)
                    if news is not None:
                        news.put_nowait(output)
            case Stats():
                if self._stats_waiters:
                    waiter = self._stats_waiters.pop(0)
                    if not waiter.done():
                        waiter.set_result(message)
            case Ready() | messages.Failed() if not self._beginning.done():
                self._beginning.set_result(message)
            case messages.Failed(_, text):
                self._fail(text)

    async def _watch(self) -> None:
        code = await self._process.wait()
        with contextlib.suppress(asyncio.TimeoutError):  # why it ended may still be on the way
            await asyncio.wait_for(self._has_failed.wait(), LAST_WORDS_S)
        self._fail(f"it {_fate(code)}")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._has_failed.set()
        self._wake_all()

    def _wake_all(self) -> None:
        for news in self._queues.values():
            news.put_nowait(None)
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(self._death())
        self._stats_waiters.clear()

    def _death(self) -> EngineDeadError:
        return EngineDeadError(f"the engine process has ended: {self._failure}")

    async def _tear_down(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._channel.close()
        await self._process.wait()
        if self._watcher is not None:
            await asyncio.gather(self._watcher, return_exceptions=True)


def _weights_options(random_weights: RandomWeights | None) -> list[str]:
    return [] if random_weights is None else ["--random-weights", json.dumps(to_dict(random_weights))]


def _fate(code: int) -> str:
    """How a process ended, from its return code."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
