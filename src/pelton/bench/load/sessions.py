"""Conversations: the next turn is sent when the answer has been read and thought about."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Protocol

import msgspec

from pelton.bench.client import Exchange
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import Send, drive
from pelton.bench.load.tally import LoadResult, OnEnd, Tally

Messages = list[dict[str, str]]


class Script(msgspec.Struct, kw_only=True):
    """A conversation with its place in the load, all but the server's answers; plain data, a unit of a loop."""

    first: Planned
    """The first turn's request."""
    messages: Messages
    """Of the first turn."""
    later: list[str]
    """What the user says in the turns after it."""
    think_ns: list[int]
    """The pause before each of them."""

    @property
    def is_warmup(self) -> bool:
        return self.first.is_warmup

    @property
    def due_ns(self) -> int | None:
        return self.first.due_ns

    @property
    def stage(self) -> str | None:
        return self.first.stage

    @stage.setter
    def stage(self, name: str) -> None:
        self.first.stage = name


class Voice(Protocol):
    """Makes a turn's request and reads its answer. It knows nothing of time."""

    def ask(self, messages: Messages, output_tokens: int) -> bytes:
        """The bytes of a request."""
        ...

    def hear(self, exchange: Exchange) -> str | None:
        """The answer's text; none when the exchange failed."""
        ...


async def run_conversations(job: LoadJob, scripts: Iterable[Script], voice: Voice, send: Send, *,
                            on_end: OnEnd | None = None) -> LoadResult:
    """Holds the conversations as the job says. Tokens of the later turns are left for whoever counts them."""
    tally = Tally(job, on_end=on_end)
    return await drive(job, scripts, functools.partial(_hold, voice=voice, send=send, tally=tally), tally)


async def _hold(script: Script, scheduled_ns: int, *, voice: Voice, send: Send, tally: Tally) -> None:
    """Sends a conversation's turns one after another. One that fails has no next turn."""
    planned, messages = script.first, script.messages
    for text, think_ns in zip([*script.later, None], [*script.think_ns, 0]):
        exchange = await send(planned.request)
        tally.ended(planned, exchange, scheduled_ns)
        answer = voice.hear(exchange)
        if answer is None or text is None or tally.result.is_server_failing:
            return
        messages = next_messages(messages, answer, text)
        planned = msgspec.structs.replace(planned, index=planned.index + 1, turn=planned.turn + 1,
                                          request=voice.ask(messages, planned.requested_output_tokens))
        scheduled_ns = exchange.end_ns + think_ns
        await sleep_until(scheduled_ns)


def next_messages(messages: Messages, answer: str, text: str) -> Messages:
    """The conversation with an answer and what the user says to it."""
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": text}]
