"""A cell of conversations: their requests, and the load that holds them."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable

import msgspec

from pelton.bench.client import Exchange
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import drive
from pelton.bench.load.sessions import Conversation, hold
from pelton.bench.load.shapes import Shape
from pelton.bench.load.tally import LoadResult, OnEnd, Tally
from pelton.bench.prompts import Prompt
from pelton.bench.prompts.trial import TrialPrompts
from pelton.bench.results import SessionSpec
from pelton.bench.target import Target


async def run_conversations(session: SessionSpec, job: LoadJob, shapes: Iterable[Shape], target: Target,
                            texts: TrialPrompts, *, num_requests: int | None, is_stream: bool, seed: str,
                            on_end: OnEnd | None = None) -> LoadResult:
    """Holds the conversations that the shapes begin; `num_requests` cuts the last one short."""
    maker = _Maker(session, target, texts, is_stream, random.Random(f"{seed}/thinking"), num_requests)
    conversations = (maker.make(shape) for shape in shapes)
    if num_requests is not None or job.concurrency is None:
        conversations = iter(list(conversations))
    tally = Tally(job, on_end=on_end)
    perform = functools.partial(hold, plan=maker.plan_next, send=target.client.send, read=maker.read, tally=tally)
    return await drive(job, conversations, perform, tally)


def num_sessions(num_requests: int | None, num_turns: int) -> int | None:
    """Conversations that so many requests make."""
    return None if num_requests is None else math.ceil(num_requests / num_turns)


class _Maker:
    """Makes conversations and their requests."""

    def __init__(self, session: SessionSpec, target: Target, texts: TrialPrompts, is_stream: bool, rng: random.Random,
                 num_requests: int | None) -> None:
        self._session = session
        self._target = target
        self._texts = texts
        self._is_stream = is_stream
        self._rng = rng
        self._num_requests = num_requests

    def make(self, shape: Shape) -> Conversation:
        """The conversation that a shape begins."""
        spec = self._session
        num_turns = spec.num_turns
        if self._num_requests is not None and not shape.is_warmup:
            num_turns = min(num_turns, self._num_requests - shape.index * spec.num_turns)
        content = self._texts.make_session(shape.prompt_tokens, entry=shape.entry, num_turns=num_turns,
                                           turn_tokens=spec.turn_tokens)
        prompt = content.next_request(None)
        num_tokens = self._counted(prompt)
        name = f"{'warm-up ' if shape.is_warmup else ''}{shape.index}"
        first = Planned(index=shape.index * spec.num_turns, is_warmup=shape.is_warmup, stage=shape.stage, session=name,
                        turn=0, request=self._request(prompt, shape.output_tokens),
                        requested_prompt_tokens=shape.prompt_tokens or num_tokens,
                        requested_output_tokens=shape.output_tokens, client_prompt_tokens=num_tokens,
                        prefix_tokens=prompt.prefix_tokens)
        think_ns = [round(self._rng.expovariate(1 / spec.think_time_s) * 1e9) if spec.think_time_s else 0
                    for _ in range(spec.num_turns - 1)]
        return Conversation(content, shape.is_warmup, shape.due_ns, first, think_ns)

    def plan_next(self, last: Planned, prompt: Prompt) -> Planned:
        """The request of the turn after `last`, whose prompt it begins with."""
        num_tokens = self._counted(prompt)
        return msgspec.structs.replace(
            last, index=last.index + 1, turn=last.turn + 1, requested_prompt_tokens=num_tokens,
            client_prompt_tokens=num_tokens, prefix_tokens=last.client_prompt_tokens,
            request=self._request(prompt, last.requested_output_tokens))

    def read(self, exchange: Exchange) -> str | None:
        answer = self._target.dialect.read(exchange, stream=self._is_stream)
        return None if answer.failure is not None else answer.text

    def _request(self, prompt: Prompt, output_tokens: int) -> bytes:
        return self._target.request(prompt, output_tokens=output_tokens, stream=self._is_stream)

    def _counted(self, prompt: Prompt) -> int:
        return prompt.num_tokens + self._target.info.frame_correction_tokens
