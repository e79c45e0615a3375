"""The engine in the caller's process: requests in, tokens out, on one background thread.

    executor = Executor("engine/", ExecutorConfig(max_batch_size=8))
    request_id = executor.enqueue_request(Request([1, 2, 3], max_new_tokens=16))
    for output in executor.await_response(request_id): ...

The shape is that of TensorRT-LLM's Executor. The thread runs the same loop as the engine process does.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from pelton.config import ExecutorConfig
from pelton.engine.loop import EngineLoop, refusal
from pelton.engine.messages import Stats, checked_request
from pelton.errors import CapacityError, EngineDeadError, RequestError, error_of_kind
from pelton.scheduler.validate import check_request
from pelton.types import Output, Request

Callback = Callable[[list[Output]], None]
Order = Callable[[], list[Output]]

EXIT_GRACE_S = 5.0
"""How long the interpreter's end waits for an engine that nobody has shut down."""
_log = logging.getLogger("pelton.engine")


class _Pending:
    """What an enqueued request still owes its caller."""

    __slots__ = ("callback", "open", "outputs")

    def __init__(self, num_completions: int, callback: Callback | None):
        self.open = set(range(num_completions))  # completions whose end the caller has not seen
        self.callback = callback
        self.outputs: list[Output] = []


class Executor:
    """Runs one engine on a thread of this process. All methods may be called from any thread.

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
        self._inbox: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._news = threading.Condition()  # guards the next two
        self._pending: dict[str, _Pending] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pelton-engine", daemon=True)
        self._thread.start()
        atexit.register(self._end_with_interpreter)

    @property
    def loop(self) -> EngineLoop:
        """For reading limits and for tests; only the executor's thread may step it."""
        return self._loop

    def validate(self, request: Request) -> Request:
        """A request as the engine takes it: the caller's own object may change later without harm.

        Raises:
            RequestError: a field is of the wrong type, or the request can never run here; the text says why.
        """
        request = checked_request(request)
        scheduler = self._loop.scheduler
        check_request(request, scheduler.limits, is_chunked=scheduler.config.enable_chunked_prefill)
        return request

    def enqueue_request(self, request: Request, callback: Callback | None = None) -> str:
        """Queues a request and returns its id, which is free again when all its completions have ended and been read.

        Args:
            callback: called with each batch of news in place of `await_response`, on the engine's thread: it must
                return soon, and must not wait for this executor. If it raises, its requests are cancelled.

        Raises:
            RequestError: the request can never run here, or its id is in use.
            CapacityError: the queue is full.
            EngineDeadError: the engine has stopped.
        """
        request = self.validate(request)
        self._check_alive()
        self._loop.scheduler.validate(request)
        with self._news:
            self._check_alive()  # from here on, its end is told even if the engine stops
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
        with self._news:
            pending = self._pending.get(request_id)
            if pending is None or pending.callback is not None:
                raise RequestError(f"request_id {request_id!r} is not known, was read to its end or has a callback",
                                   param="request_id")
            self._news.wait_for(lambda: pending.outputs or not pending.open or self._failure is not None, timeout)
            outputs, pending.outputs = pending.outputs, []
            if not outputs:
                if not pending.open:
                    raise RequestError(f"request_id {request_id!r} was ended or read to its end by another thread",
                                       param="request_id")
                self._check_alive()
            self._close(request_id, pending, [out.index for out in outputs if out.finish_reason is not None])
            return outputs

    def run(self, requests: Iterable[Request], take: Callable[[Output], int | None]) -> None:
        """Runs requests to their ends, giving `take` every Output of theirs in this thread.

        However many there are, no more are queued than the queue holds. If anything is raised, all are cancelled.

        Args:
            take: returns the number of output tokens at which the completion's text ended it, None if it goes on.

        Raises:
            RequestError: one of them can never run here. CapacityError: others fill the queue.
            EngineDeadError: the engine has stopped. PeltonError: it failed at one of them.
        """
        backlog = deque(requests)
        still_open: dict[str, set[int]] = {}
        num_open, max_open = 0, self._loop.scheduler.config.max_queue_size
        news: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        put = news.put  # one object, so that news of the same step comes in one list
        try:
            while backlog or still_open:
                while backlog and (not still_open or num_open + backlog[0].sampling_params.n <= max_open):
                    try:
                        request_id = self.enqueue_request(backlog[0], put)
                    except CapacityError:
                        if not still_open:
                            raise
                        break  # some of ours are on their way out
                    still_open[request_id] = set(range(backlog[0].sampling_params.n))
                    num_open += backlog.popleft().sampling_params.n
                for output in news.get():
                    if output.index not in still_open.get(output.request_id, ()):
                        continue
                    if output.finish_reason == "error":
                        raise error_of_kind(output.error_kind, output.error or "the engine gave no reason")
                    end = take(output)
                    if end is not None:
                        self.finish(output.request_id, output.index, end)
                    if end is not None or output.finish_reason is not None:
                        num_open -= 1
                        still_open[output.request_id].discard(output.index)
                        if not still_open[output.request_id]:
                            del still_open[output.request_id]
        except BaseException:
            for request_id in still_open:
                self.cancel(request_id)
            raise

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
                self._news.notify_all()
        self._inbox.put(lambda: self._loop.finish(request_id, index, num_tokens) or [])

    def stats(self) -> Stats:
        """The engine's state at one moment between two steps.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        self._check_alive()
        if threading.current_thread() is self._thread:
            return self._loop.stats()
        box: queue.SimpleQueue[Stats] = queue.SimpleQueue()
        self._inbox.put(lambda: box.put(self._loop.stats()) or [])
        while True:
            try:
                return box.get(timeout=0.5)
            except queue.Empty:
                self._check_alive()

    def shutdown(self, timeout: float | None = None) -> None:
        """Ends the thread after the steps in flight and frees the engine's memory. May be called twice.

        Open requests end with EngineDeadError, those with a callback with an Output that says so.

        Args:
            timeout: seconds to wait for it; None: until it has ended.
        """
        atexit.unregister(self._end_with_interpreter)
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _end_with_interpreter(self) -> None:
        # A daemon thread that is still computing while the interpreter goes away can crash it.
        self.shutdown(timeout=EXIT_GRACE_S)

    def _close(self, request_id: str, pending: _Pending, indexes: list[int]) -> None:
        pending.open.difference_update(indexes)
        if not pending.open:
            self._pending.pop(request_id, None)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineDeadError(f"the engine stopped: {self._failure}") from self._failure

    # On the engine's thread:

    def _run(self) -> None:
        failure: BaseException = EngineDeadError("it was shut down")
        try:
            while self._take_orders():
                self._publish(self._loop.step(self._publish))
            self._publish(self._loop.drain())
        except BaseException as error:  # a fault of the loop itself: nobody may wait for it any longer
            _log.critical("the engine's loop failed", exc_info=True)
            failure = error
        self._tell_end(failure)
        self._loop.close()

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
            return refusal(request, error)
        return []

    def _publish(self, outputs: list[Output]) -> None:
        if not outputs:
            return
        calls: dict[int, tuple[Callback, list[Output]]] = {}
        with self._news:
            for output in outputs:
                pending = self._pending.get(output.request_id)
                if pending is None or output.index not in pending.open:
                    continue  # its end is known: a stop string was found
                if pending.callback is None:
                    pending.outputs.append(output)
                    continue
                calls.setdefault(id(pending.callback), (pending.callback, []))[1].append(output)
                if output.finish_reason is not None:
                    self._close(output.request_id, pending, [output.index])
            self._news.notify_all()
        for callback, news in calls.values():
            try:
                callback(news)
            except Exception:
                _log.error("a callback failed; its requests are cancelled", exc_info=True)
                for request_id in {output.request_id for output in news}:
                    self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        """Cancels a request whose caller cannot be told."""
        with self._news:
            self._pending.pop(request_id, None)
        self._loop.cancel(request_id)

    def _tell_end(self, failure: BaseException) -> None:
        """Makes every caller's wait end with the failure."""
        with self._news:
            self._failure = failure
            self._news.notify_all()
            called = [(request_id, pending) for request_id, pending in self._pending.items() if pending.callback]
        for request_id, pending in called:
            try:
                pending.callback([Output(request_id, index, [], finish_reason="error", error_kind="EngineDeadError",
                                         error=f"the engine stopped: {failure}") for index in sorted(pending.open)])
            except Exception:
                _log.error("a callback failed", exc_info=True)
