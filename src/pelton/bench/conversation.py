"""Conversations of a cell: made before the load, held by any process, counted after it."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from pelton.bench.client import Client, Exchange
from pelton.bench.load.plan import Planned
from pelton.bench.load.sessions import Messages, Script, next_messages
from pelton.bench.load.shapes import Shape
from pelton.bench.load.tally import LoadResult
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.trial import TrialPrompts
from pelton.bench.protocols.dialect import Dialect
from pelton.bench.protocols.ollama import OllamaDialect
from pelton.bench.protocols.openai import OpenAIDialect
from pelton.bench.results import SessionSpec
from pelton.bench.target import Target

CHAT_DIALECTS = {dialect.__name__: dialect for dialect in (OpenAIDialect, OllamaDialect)}


class VoiceSpec(msgspec.Struct):
    """A voice in plain data that can cross to another process."""

    dialect: str
    fields: dict[str, Any]
    is_stream: bool

    @classmethod
    def of(cls, dialect: Dialect, *, is_stream: bool) -> VoiceSpec:
        """Of one of the chat dialects, whose fields are plain data."""
        return cls(type(dialect).__name__, dict(vars(dialect)), is_stream)


class ChatVoice:
    """Speaks and reads a chat dialect."""

    def __init__(self, spec: VoiceSpec, client: Client) -> None:
        self._dialect: Dialect = CHAT_DIALECTS[spec.dialect](**spec.fields)
        self._client = client
        self._is_stream = spec.is_stream

    def ask(self, messages: Messages, output_tokens: int) -> bytes:
        prompt = Prompt(text="", token_ids=None, num_tokens=0, messages=messages)
        body = self._dialect.body(prompt, output_tokens=output_tokens, stream=self._is_stream)
        return self._client.build("POST", self._dialect.route(stream=self._is_stream), body)

    def hear(self, exchange: Exchange) -> str | None:
        answer = self._dialect.read(exchange, stream=self._is_stream)
        return None if answer.failure is not None else answer.text


def num_sessions(num_requests: int | None, num_turns: int) -> int | None:
    """Conversations that so many requests make."""
    return None if num_requests is None else math.ceil(num_requests / num_turns)


class Scripts:
    """Makes a trial's conversations, and counts their turns when they were held."""

    def __init__(self, session: SessionSpec, target: Target, texts: TrialPrompts, voice: ChatVoice, *,
                 num_requests: int | None, seed: str) -> None:
        """`num_requests` cuts the last conversation short."""
        self._session = session
        self._target = target
        self._texts = texts
        self._voice = voice
        self._num_requests = num_requests
        self._random = random.Random(f"{seed}/thinking")
        self._made: dict[str, Script] = {}

    def make(self, shape: Shape) -> Script:
        """The conversation that a shape begins."""
        spec = self._session
        num_turns = spec.num_turns
        if self._num_requests is not None and not shape.is_warmup:
            num_turns = min(num_turns, self._num_requests - shape.index * spec.num_turns)
        prompt, later = self._texts.make_session(shape.prompt_tokens, entry=shape.entry, num_turns=num_turns,
                                                 turn_tokens=spec.turn_tokens)
        num_tokens = prompt.num_tokens + self._target.info.frame_correction_tokens
        name = f"{'warm-up ' if shape.is_warmup else ''}{shape.index}"
        first = Planned(index=shape.index * spec.num_turns, is_warmup=shape.is_warmup, stage=shape.stage, session=name,
                        turn=0, request=self._voice.ask(prompt.as_messages, shape.output_tokens),
                        requested_prompt_tokens=shape.prompt_tokens or num_tokens, due_ns=shape.due_ns,
                        requested_output_tokens=shape.output_tokens, client_prompt_tokens=num_tokens,
                        prefix_tokens=prompt.prefix_tokens)
        think_ns = [round(self._random.expovariate(1 / spec.think_time_s) * 1e9) if spec.think_time_s else 0
                    for _ in later]
        self._made[name] = Script(first=first, messages=prompt.as_messages, later=later, think_ns=think_ns)
        return self._made[name]

    def count(self, results: Sequence[LoadResult]) -> None:
        """Fills in the sizes of the later turns, and what they share with the turn before; it would cost a load its
        time."""
        turns: dict[str, dict[int, tuple[Planned, Exchange]]] = defaultdict(dict)
        for planned, exchange in (pair for result in results for pair in result.sent):
            if planned.session is not None:  # the pilot is none
                turns[planned.session][planned.turn] = planned, exchange
        for name, found in turns.items():
            script, messages = self._made[name], self._made[name].messages
            for turn in range(1, len(found)):
                (before, exchange), (planned, _) = found[turn - 1], found[turn]
                messages = next_messages(messages, self._voice.hear(exchange), script.later[turn - 1])
                num_tokens = self._target.prompts.count_messages(messages)
                planned.requested_prompt_tokens = planned.client_prompt_tokens = num_tokens
                planned.prefix_tokens = before.client_prompt_tokens
