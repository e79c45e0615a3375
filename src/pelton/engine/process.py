"""The engine process: `python -m pelton.engine.process`, started by `EngineClient`, one per replica.

Orders come in and news goes out over a socket that it inherits (channel.py, messages.py). The process ends when it is
told to, or when its standard input closes, so that it never outlives the server that started it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import socket
import sys
from pathlib import Path

import msgspec

from pelton.config import ExecutorConfig, RandomWeights, from_dict
from pelton.engine import messages
from pelton.engine.channel import EngineEnd, spin_seconds
from pelton.engine.loop import EngineLoop, refusal
from pelton.engine.wake import wake_driver
from pelton.errors import PeltonError, RequestError, missing_part
from pelton.lifeline import end_with_parent
from pelton.types import Output, Request

SERVER = 0
"""The one client so far: the process that started this one."""


class EngineService:
    """Serves one loop to the clients of one channel. A request belongs to the client that sent it."""

    def __init__(self, loop: EngineLoop, channel: EngineEnd):
        self._loop = loop
        self._channel = channel
        self._clients: dict[str, int] = {}  # request id -> who asked
        self._open: dict[str, set[int]] = {}  # request id -> completions that have not ended
        self._is_stopping = False

    def run(self) -> None:
        """Steps until told to shut down, sleeping while there is nothing to do."""
        while not self._is_stopping:
            idle = not self._loop.has_work()
            while self._channel.poll(wait=idle):
                self._receive(*self._channel.receive())
                idle = False
            self._send(self._loop.step(self._send))
        self._send(self._loop.drain())

    def _receive(self, client: int, frame: bytes) -> None:
        try:
            message = messages.decode_to_engine(frame)
        except (ValueError, msgspec.DecodeError) as error:  # a client of another version; nobody else is disturbed
            print(f"pelton engine: dropped an unreadable message: {error}", file=sys.stderr, flush=True)
            return
        self._handle(client, message)

    def _handle(self, client: int, message: messages.ToEngine) -> None:
        match message:
            case messages.Add(request):
                self._add(client, request)
            case messages.Cancel(request_id) if self._clients.get(request_id) == client:
                self._loop.cancel(request_id)
                self._forget(request_id)
            case messages.Finish(request_id, index, num_tokens) if self._clients.get(request_id) == client:
                self._loop.finish(request_id, index, num_tokens)
                self._close(request_id, index)
            case messages.GetStats():
                self._channel.send(client, messages.encode(self._loop.stats()))
            case messages.Shutdown():
                self._is_stopping = True

    def _add(self, client: int, request: Request) -> None:
        try:
            if request.request_id in self._clients:  # its news must go on to whom it went before
                raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
            self._loop.add(request)
        except Exception as error:
            self._channel.send(client, messages.encode(messages.Outputs(refusal(request, error))))
            return
        self._clients[request.request_id] = client
        self._open[request.request_id] = set(range(request.sampling_params.n))

    def _send(self, outputs: list[Output]) -> None:
        """One message per client with all its news of the step."""
        per_client: dict[int, list[Output]] = {}
        for output in outputs:
            client = self._clients.get(output.request_id)
            if client is not None:
                per_client.setdefault(client, []).append(output)
                if output.finish_reason is not None:
                    self._close(output.request_id, output.index)
        for client, news in per_client.items():
            self._channel.send(client, messages.encode(messages.Outputs(news)))

    def _close(self, request_id: str, index: int) -> None:
        still_open = self._open.get(request_id, set())
        still_open.discard(index)
        if not still_open:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._clients.pop(request_id, None)
        self._open.pop(request_id, None)


def main(argv: list[str] | None = None) -> int:
    """Loads an engine and serves it; the exit code is 1 if it could not be loaded."""
    parser = argparse.ArgumentParser(prog="pelton.engine.process")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--socket", type=int, required=True, help="number of the open file that is the server's socket")
    parser.add_argument("--config", default="{}", help="ExecutorConfig as JSON")
    parser.add_argument("--random-weights", help="RandomWeights as JSON; --engine then is a model's folder")
    parser.add_argument("--log-level", default="WARNING")
    args = parser.parse_args(argv)
    logging.basicConfig(level=args.log_level, stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # whoever stops a whole group means the server, which asks us to stop
    end_with_parent()
    channel = EngineEnd([socket.socket(fileno=args.socket)], spin_s=spin_seconds())

    def tell_end(error: Exception) -> None:
        kind = type(error).__name__
        message = str(error) if isinstance(error, PeltonError) else f"{kind}: {error}"
        channel.send(SERVER, messages.encode(messages.Failed(kind, message)))

    loop = None
    try:
        loop = _load(args)
        channel.send(SERVER, messages.encode(_ready_message(loop)))
        gc.collect()
        gc.freeze()  # what was loaded stays: collections while serving need not look at it again
        EngineService(loop, channel).run()
    except ModuleNotFoundError as error:
        tell_end(missing_part(error) or error)
        return 1
    except PeltonError as error:
        tell_end(error)
        return 1
    except Exception as error:
        tell_end(error)
        raise
    finally:
        channel.close()
        if loop is not None:  # last, as it waits for the device, which may be what failed
            loop.close()
    return 0


def _load(args: argparse.Namespace) -> EngineLoop:
    config = from_dict(ExecutorConfig, json.loads(args.config))
    if config.device != "cpu":
        wake_driver()
    gc.disable()  # what torch's import makes stays; to look through it again and again takes a tenth of its time
    from pelton.engine.assemble import make_loop, make_random_loop

    gc.freeze()
    gc.enable()
    if args.random_weights is None:
        return make_loop(Path(args.engine), config)
    return make_random_loop(args.engine, from_dict(RandomWeights, json.loads(args.random_weights)), config)


def _ready_message(loop: EngineLoop) -> messages.Ready:
    """What a client must know of a loaded engine."""
    limits = loop.scheduler.limits
    return messages.Ready(max_seq_len=limits.max_seq_len, max_input_len=limits.max_input_len,
                          max_batch_size=limits.max_batch_size, num_blocks=limits.num_blocks,
                          tokens_per_block=limits.tokens_per_block, vocab_size=limits.vocab_size, eos_ids=loop.end_ids,
                          facts=loop.runner.describe())


if __name__ == "__main__":
    sys.exit(main())
