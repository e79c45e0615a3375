"""The engine process: `python -m pelton.engine.process`, started by `EngineClient`, one per replica.

Orders come in and news goes out over one ZeroMQ ROUTER socket on a Unix socket (messages.py). The process ends when
it is told to, or when its standard input closes, so that it never outlives the server that started it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec
import zmq

from pelton.config import ExecutorConfig, from_dict
from pelton.engine import messages
from pelton.engine.assemble import make_loop, ready_message
from pelton.engine.loop import EngineLoop
from pelton.errors import PeltonError
from pelton.types import Output


class EngineService:
    """Serves one loop to the clients of one socket."""

    def __init__(self, loop: EngineLoop, socket: zmq.Socket):
        self._loop = loop
        self._socket = socket
        self._clients: dict[str, bytes] = {}  # request id -> who asked
        self._open: dict[str, set[int]] = {}  # request id -> completions that have not ended
        self._is_stopping = False

    def run(self) -> None:
        """Steps until told to shut down, sleeping while there is nothing to do."""
        while not self._is_stopping:
            idle = not self._loop.has_work()
            while self._socket.poll(None if idle else 0):
                self._handle(*self._socket.recv_multipart())
                idle = False
            self._send(self._loop.step())
        self._send(self._loop.drain())

    def _handle(self, client: bytes, frame: bytes) -> None:
        try:
            message = messages.decode_to_engine(frame)
        except msgspec.ValidationError as error:  # a client of another version; nobody else is disturbed
            print(f"pelton engine: dropped an unreadable message: {error}", file=sys.stderr, flush=True)
            return
        match message:
            case messages.Add(request):
                self._clients[request.request_id] = client
                self._open[request.request_id] = set(range(request.sampling_params.n))
                try:
                    self._loop.add(request)
                except PeltonError as error:
                    self._send([Output(request.request_id, index, [], finish_reason="error", error=str(error),
                                       error_kind=type(error).__name__)
                                for index in range(request.sampling_params.n)])
            case messages.Cancel(request_id):
                self._loop.cancel(request_id)
                self._forget(request_id)
            case messages.Finish(request_id, index, num_tokens):
                self._loop.finish(request_id, index, num_tokens)
                self._close(request_id, index)
            case messages.GetStats():
                self._socket.send_multipart([client, messages.encode(self._loop.stats())])
            case messages.Shutdown():
                self._is_stopping = True

    def _send(self, outputs: list[Output]) -> None:
        """One message per client with all its news of the step."""
        per_client: dict[bytes, list[Output]] = {}
        for output in outputs:
            client = self._clients.get(output.request_id)
            if client is not None:
                per_client.setdefault(client, []).append(output)
                if output.finish_reason is not None:
                    self._close(output.request_id, output.index)
        for client, news in per_client.items():
            self._socket.send_multipart([client, messages.encode(messages.Outputs(news))])

    def _close(self, request_id: str, index: int) -> None:
        still_open = self._open.get(request_id, set())
        still_open.discard(index)
        if not still_open:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._clients.pop(request_id, None)
        self._open.pop(request_id, None)


def _die_with_parent() -> None:
    """Ends the process at once when standard input closes, that is, when the parent is gone."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held by a daemon thread, breaks the interpreter's exit
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pelton.engine.process")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--address", required=True, help="ipc:// address to bind")
    parser.add_argument("--config", default="{}", help="ExecutorConfig as JSON")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the server, which asks us to stop
    _die_with_parent()
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 0)
    socket.setsockopt(zmq.SNDHWM, 0)  # the queue limit bounds what can be outstanding
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.bind(args.address)
    client, _hello = socket.recv_multipart()
    try:
        loop = make_loop(Path(args.engine), from_dict(ExecutorConfig, json.loads(args.config)))
    except PeltonError as error:
        socket.send_multipart([client, messages.encode(messages.Failed(type(error).__name__, str(error)))])
        socket.close()
        zmq.Context.instance().term()
        return 1
    socket.send_multipart([client, messages.encode(ready_message(loop))])
    gc.collect()
    gc.freeze()  # what was loaded stays: collections while serving need not look at it again
    try:
        EngineService(loop, socket).run()
    except Exception as error:
        socket.send_multipart([client, messages.encode(messages.Failed(type(error).__name__, str(error)))])
        raise
    finally:
        loop.runner.close()
        socket.close()
        zmq.Context.instance().term()
    return 0


if __name__ == "__main__":
    sys.exit(main())
