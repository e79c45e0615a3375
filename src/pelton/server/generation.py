"""The engine's part of one HTTP request: prompts go in, the news of all their completions comes out as text.

Knows no protocol: OpenAI's and others' routes share it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pelton.errors import CapacityError, EngineDeadError, PeltonError, RequestError
from pelton.server.errors import EngineFault
from pelton.server.state import ServerState
from pelton.tokenizer.completion import CompletionNews, CompletionText
from pelton.types import Output, Request, SamplingParams


@dataclass(slots=True)
class Update:
    """What one Output brought to one of the choices."""

    choice: int
    """prompt number * n + completion number"""
    news: CompletionNews
    output: Output


@dataclass
class Usage:
    """Tokens of one HTTP request, over all its prompts and completions."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0


class Generation:
    """Runs the prompts of one HTTP request.

    Args:
        prompts: token ids of each.
        max_tokens: output limit of each.
        request_id: prefix of the engine's request ids.
    """

    def __init__(self, state: ServerState, prompts: Sequence[list[int]], params: SamplingParams, *,
                 max_tokens: Sequence[int | None], request_id: str, arrival: float, priority: int = 0,
                 cache_salt: str = ""):
        self._state = state
        self.params = params
        self.requests = [
            Request(ids, max_new_tokens=None if limit == params.max_tokens else limit, sampling_params=params,
                    request_id=f"{request_id}-{i}", priority=priority, cache_salt=cache_salt, arrival_time=arrival)
            for i, (ids, limit) in enumerate(zip(prompts, max_tokens, strict=True))]
        self.usage = Usage(num_prompt_tokens=sum(map(len, prompts)))

    @property
    def num_choices(self) -> int:
        return len(self.requests) * self.params.n

    def updates(self) -> AsyncGenerator[Update, None]:
        """The news of all choices as it comes. Closing the iterator cancels what still runs.

        Raises:
            CapacityError: the engine's queue is full. EngineDeadError: it is gone. RequestError: it refuses a prompt.
            EngineFault: it failed at this request.
        """
        return self._run(0) if len(self.requests) == 1 else self._run_all()

    async def _run(self, number: int) -> AsyncGenerator[Update, None]:
        request, client, n = self.requests[number], self._state.client, self.params.n
        texts = [CompletionText(self._state.tokenizer, request.input_token_ids, self.params) for _ in range(n)]
        clock = _Clock(self._state, request.arrival_time, n)
        num_cached, outcome = 0, "cancelled"
        try:
            async with aclosing(client.generate(request)) as outputs:
                async for output in outputs:
                    if output.finish_reason in ("error", "cancelled"):
                        raise _fault(output)
                    index = output.index
                    news = texts[index].push(output)
                    clock.tick(index, len(news.token_ids))
                    if news.is_early_stop:
                        await client.finish(request.request_id, index, texts[index].num_tokens)
                    self.usage.num_completion_tokens += len(news.token_ids)
                    if index == 0 and output.num_cached_tokens > num_cached:
                        self.usage.num_cached_tokens += output.num_cached_tokens - num_cached
                        num_cached = output.num_cached_tokens
                    outcome = news.finish_reason or outcome
                    yield Update(number * n + index, news, output)
        except (PeltonError, EngineFault) as error:
            outcome = "rejected" if isinstance(error, RequestError | CapacityError) else "error"
            raise
        except GeneratorExit:
            outcome = "cancelled"
            raise
        finally:
            clock.end(outcome)

    async def _run_all(self) -> AsyncGenerator[Update, None]:
        news: asyncio.Queue[Update | BaseException | None] = asyncio.Queue()

        async def pump(number: int) -> None:
            try:
                async with aclosing(self._run(number)) as updates:
                    async for update in updates:
                        news.put_nowait(update)
            except Exception as error:
                news.put_nowait(error)
            else:
                news.put_nowait(None)

        tasks = [asyncio.create_task(pump(number)) for number in range(len(self.requests))]
        num_open = len(tasks)
        try:
            while num_open:
                item = await news.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Clock:
    """Times the tokens of one engine request for the metrics."""

    def __init__(self, state: ServerState, arrival: float, n: int):
        self._metrics = state.metrics
        self._arrival = arrival
        self._last = [0.0] * n  # when each completion's last token came
        self._has_begun = False

    def tick(self, index: int, num_tokens: int) -> None:
        if not num_tokens:
            return
        now = time.monotonic()
        if not self._has_begun:
            self._has_begun = True
            self._metrics.time_to_first_token.observe(now - self._arrival)
        last, self._last[index] = self._last[index], now
        if last:
            gap = (now - last) / num_tokens  # tokens that came together share the time
            for _ in range(num_tokens):
                self._metrics.inter_token.observe(gap)

    def end(self, outcome: str) -> None:
        self._metrics.requests.add(label=outcome)
        if outcome in ("stop", "length"):
            self._metrics.end_to_end.observe(time.monotonic() - self._arrival)


def _fault(output: Output) -> Exception:
    """The error of an Output that has one."""
    if output.finish_reason == "cancelled":
        return EngineDeadError("the engine is shutting down")
    message = output.error or "the engine gave no reason"
    kind = {"CapacityError": CapacityError, "RequestError": RequestError}.get(output.error_kind or "", EngineFault)
    return kind(message)
