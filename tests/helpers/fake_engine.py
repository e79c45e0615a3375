"""An engine client without an engine: the same interface as `pelton.engine.client.EngineClient`, known answers."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator

from pelton.engine.messages import Ready, Stats
from pelton.errors import EngineDeadError
from pelton.tokenizer.tokenizer import Tokenizer
from pelton.types import Output, Request, SamplingParams, TokenLogprobs

REPLY = "The quick brown fox jumps over the lazy dög 😀!"


class FakeEngineClient:
    """Answers every prompt with the same text, one token per Output, then end-of-sequence.

    Attributes:
        requests: all requests, as they came.
        finishes: (request id, index, num_tokens) of each `finish`.
        cancelled: ids of requests whose iterator was closed early.
        pause_after: tokens per completion after which it waits for `resume`.
        refusal: (error_kind, text) that every request is answered with instead.
    """

    def __init__(self, tokenizer: Tokenizer, *, reply: str = REPLY, max_seq_len: int = 256, max_input_len: int = 200,
                 tokens_per_output: int = 1):
        self.ready = Ready(max_seq_len=max_seq_len, max_input_len=max_input_len, max_batch_size=8, num_blocks=64,
                           tokens_per_block=16, vocab_size=tokenizer.vocab_size, eos_ids=tokenizer.eos_ids)
        self._tokenizer = tokenizer
        self._tokens_per_output = tokens_per_output
        self.reply_ids = tokenizer.encode(reply, add_special_tokens=False)
        self.requests: list[Request] = []
        self.finishes: list[tuple[str, int, int]] = []
        self.cancelled: list[str] = []
        self.pause_after: int | None = None
        self.refusal: tuple[str | None, str] | None = None
        self.num_cached_tokens = 0
        self._open: dict[str, set[int]] = {}
        self._failure: str | None = None
        self._news = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._is_resumed = False

    @property
    def is_alive(self) -> bool:
        return self._failure is None

    async def generate(self, request: Request) -> AsyncIterator[Output]:
        self._check_alive()
        self._loop = asyncio.get_running_loop()
        self._note(self.requests, request)
        still_open = self._open[request.request_id] = set(range(request.sampling_params.n))
        try:
            if self.refusal is not None:
                kind, text = self.refusal
                still_open.clear()
                yield Output(request.request_id, 0, [], finish_reason="error", error=text, error_kind=kind)
                return
            runs = [self._outputs(request, index) for index in range(request.sampling_params.n)]
            for step, outputs in enumerate(itertools.zip_longest(*runs)):
                await asyncio.sleep(0)
                if self.pause_after is not None and step * self._tokens_per_output >= self.pause_after:
                    await self._resumed()
                for output in outputs:
                    self._check_alive()
                    if output is not None and output.index in still_open:
                        if output.finish_reason is not None:
                            still_open.discard(output.index)
                        yield output
        finally:
            del self._open[request.request_id]
            if still_open and self._failure is None:
                self._note(self.cancelled, request.request_id)

    async def finish(self, request_id: str, index: int, num_tokens: int) -> None:
        self._open[request_id].discard(index)
        self._note(self.finishes, (request_id, index, num_tokens))

    async def stats(self) -> Stats:
        self._check_alive()
        return Stats(num_running=len(self._open), num_waiting=0, num_blocks_used=3, num_blocks_free=61,
                     num_blocks_cached=5, num_steps=7, num_preemptions=0,
                     num_prompt_tokens=sum(len(r.input_token_ids) for r in self.requests), num_cached_tokens=0,
                     num_generated_tokens=11, step_host_ms=0.2)

    async def shutdown(self) -> None:
        self._failure = "it was shut down"

    # For tests, from their own thread:

    def resume(self) -> None:
        """Lets paused completions go on."""
        self._is_resumed = True
        self._wake()

    def die(self) -> None:
        """The engine process ends."""
        self._failure = "exit code -9"
        self._wake()

    def wait_for(self, events: list, count: int = 1) -> None:
        """Waits until one of the lists above has `count` entries."""
        with self._news:
            assert self._news.wait_for(lambda: len(events) >= count, timeout=20), f"{len(events)} of {count} came"

    def _note(self, events: list, event: object) -> None:
        with self._news:
            events.append(event)
            self._news.notify_all()

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _resumed(self) -> None:
        while not self._is_resumed and self._failure is None:
            await self._changed.wait()
            self._changed.clear()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineDeadError(f"the engine process has ended: {self._failure}")

    def _outputs(self, request: Request, index: int) -> list[Output]:
        params = request.sampling_params
        tokens, reason, stop = self._tokens(params)
        outputs = []
        for start in range(0, len(tokens), self._tokens_per_output):
            chunk = tokens[start:start + self._tokens_per_output]
            output = Output(request.request_id, index, chunk, num_cached_tokens=self.num_cached_tokens)
            if params.logprobs is not None:
                output.logprobs = [self.entry(token, params.logprobs) for token in chunk]
            if params.prompt_logprobs is not None and start == 0:
                output.prompt_logprobs = [None, *(self.entry(token, params.prompt_logprobs)
                                                  for token in request.input_token_ids[1:])]
            outputs.append(output)
        outputs[-1].finish_reason, outputs[-1].stop_reason = reason, stop
        return outputs

    def _tokens(self, params: SamplingParams) -> tuple[list[int], str, int | None]:
        assert params.max_tokens is not None
        ends = [] if params.ignore_eos else [self.ready.eos_ids[0]]
        out: list[int] = []
        for token in itertools.chain(self.reply_ids, ends, itertools.cycle(self.reply_ids)):
            out.append(token)
            if token in params.stop_token_ids or token in ends:
                return out, "stop", token if token in params.stop_token_ids else None
            if len(out) == params.max_tokens:
                return out, "length", None
        raise AssertionError

    @staticmethod
    def entry(token: int, count: int) -> TokenLogprobs:
        """The chosen token at -0.5, then ids 10, 11, ... at -1, -2, ... and so on."""
        return TokenLogprobs([token, *range(10, 10 + count)], [-0.5, *(-1.0 - i for i in range(count))], 1)
