"""The engine in the caller's process: requests in, tokens out, on one background thread.

    executor = Executor("engine/", ExecutorConfig(max_batch_size=8))
    request_id = executor.enqueue_request(Request([1, 2, 3], max_new_tokens=16))
    for output in executor.await_response(request_id): ...

The shape is that of TensorRT-LLM's Executor. The thread runs the same loop as the engine process does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelton.config import ExecutorConfig
from pelton.engine.loop import EngineLoop
from pelton.engine.messages import Stats
from pelton.errors import EngineDeadError, RequestError
from pelton.types import Output, Request

Callback = Callable[[list[Output]], None]


class _Pending:
    """What an enqueued request still owes its caller."""

    __slots__ = ("callback", "open", "outputs")

    def __init__(self, num_completions: int, callback: Callback | None):
        self.open = set(range(num_completions))  # completions whose end the caller has not seen
        self.callback = callback
        self.outputs: list[Output] = []


class Executor:
    """Runs one engine on a thread of this process.

    Args:
        engine: an engine directory, or a loop that is already made (tests, benchmarks).
        config: how to run it.

    Raises:
        EngineError: the engine directory is refused.
        CapacityError: its weights and one full sequence do not fit into memory.
    """

    def __init__(self, engine: str | Path | EngineLoop, config: ExecutorConfig | None = None):
        if isinstance(engine, EngineLoop):
            self._loop = engine
        else:
            from pelton.engine.assemble import make_loop

            self._loop = make_loop(Path(engine), config or ExecutorConfig())
        self._inbox: queue.SimpleQueue[Callable[[], list[Output]] | None] = queue.SimpleQueue()
        self._pending: dict[str, _Pending] = {}
        self._news = threading.Condition()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pelton-engine", daemon=True)
        self._thread.start()

    @property
    def loop(self) -> EngineLoop:
        """For reading limits and for tests; only the executor's thread may step it."""
        return self._loop

    def enqueue_request(self, request: Request, callback: Callback | None = None) -> str:
        """Queues a request and returns its id.

        Args:
            callback: called on the engine's thread with each batch of news in place of `await_response`.

        Raises:
            RequestError: the request can never run here, or its id is in use.
            CapacityError: the queue is full.
            EngineDeadError: the engine has stopped.
        """
        self._check_alive()
        self._loop.scheduler.validate(request)
        with self._news:
            if request.request_id in self._pending:
                raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
            self._pending[request.request_id] = _Pending(request.sampling_params.n, callback)
        self._inbox.put(lambda: self._add(request))
        return request.request_id

    def await_response(self, request_id: str, timeout: float | None = None) -> list[Output]:
        """Waits for news of a request and returns it, oldest first; an empty list after `timeout` seconds.

        The last Output of each completion has a finish_reason; when all n have ended, the id is forgotten.

        Raises:
            RequestError: no such request, or it has ended and been read.
            EngineDeadError: the engine stopped first.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._news:
            pending = self._pending.get(request_id)
            if pending is None:
                raise RequestError(f"request_id {request_id!r} is not known or was read to its end", param="request_id")
            while not pending.outputs:
                self._check_alive()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._news.wait(left)
            outputs, pending.outputs = pending.outputs, []
            self._close(request_id, pending, [out.index for out in outputs if out.finish_reason is not None])
            return outputs

    def cancel(self, request_id: str) -> None:
        """Stops a request at any moment; its last Output says 'cancelled'. Unknown ids are ignored."""
        self._inbox.put(lambda: self._loop.cancel(request_id))

    def finish(self, request_id: str, index: int, num_tokens: int) -> None:
        """Ends completion `index` after `num_tokens` output tokens because its text matched a stop string.

        No further Output comes for it: whoever matched the text already knows the end.
        """
        with self._news:
            pending = self._pending.get(request_id)
            if pending is not None:
                pending.outputs = [output for output in pending.outputs if output.index != index]
                self._close(request_id, pending, [index])
        self._inbox.put(lambda: self._loop.finish(request_id, index, num_tokens) or [])

    def stats(self) -> Stats:
        """The engine's state at one moment between two steps."""
        self._check_alive()
        box: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox.put(lambda: box.put(self._loop.stats()) or [])
        while True:
            try:
                return box.get(timeout=0.5)
            except queue.Empty:
                self._check_alive()

    def shutdown(self) -> None:
        """Ends the thread after the steps in flight; open requests end with EngineDeadError. May be called twice."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _close(self, request_id: str, pending: _Pending, indexes: list[int]) -> None:
        pending.open.difference_update(indexes)
        if not pending.open:
            self._pending.pop(request_id, None)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineDeadError(f"the engine stopped: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._publish(self._loop.step())
            self._publish(self._loop.drain())
            failure: BaseException = EngineDeadError("it was shut down")
        except BaseException as error:  # a fault of the loop itself: tell every waiting caller
            failure = error
        finally:
            self._loop.runner.close()
        with self._news:
            self._failure = failure
            self._news.notify_all()
            callbacks = [(rid, p) for rid, p in self._pending.items() if p.callback]
        for request_id, pending in callbacks:
            pending.callback([Output(request_id, 0, [], finish_reason="error", error=f"the engine stopped: {failure}")])

    def _take_orders(self) -> bool:
        """Applies all waiting orders, sleeping while there is no work; False once told to stop."""
        while True:
            try:
                order = self._inbox.get(block=not self._loop.has_work())
            except queue.Empty:
                return True
            if order is None:
                return False
            self._publish(order())

    def _add(self, request: Request) -> list[Output]:
        try:
            self._loop.add(request)
        except Exception as error:  # validated before; the queue may have filled since
            return [Output(request.request_id, index, [], finish_reason="error", error=str(error))
                    for index in range(request.sampling_params.n)]
        return []

    def _publish(self, outputs: list[Output]) -> None:
        if not outputs:
            return
        calls: dict[str, tuple[Callback, list[Output]]] = {}
        with self._news:
            for output in outputs:
                pending = self._pending.get(output.request_id)
                if pending is None or output.index not in pending.open:
                    continue  # its end is known: a stop string was found, or the caller stopped reading
                if pending.callback is None:
                    pending.outputs.append(output)
                    continue
                calls.setdefault(output.request_id, (pending.callback, []))[1].append(output)
                if output.finish_reason is not None:
                    self._close(output.request_id, pending, [output.index])
            self._news.notify_all()
        for callback, news in calls.values():
            callback(news)
