"""Conversations: the next turn is sent when the answer has been read and thought about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pelton.bench.client import Exchange
from pelton.bench.load.clock import sleep_until
from pelton.bench.load.plan import Planned
from pelton.bench.load.run_load import Send
from pelton.bench.load.tally import Tally
from pelton.bench.prompts import Prompt


class Session(Protocol):
    """A conversation's content. It knows nothing of time."""

    def next_request(self, previous_answer: str | None) -> Prompt | None:
        """The next turn's whole prompt, given the answer to the last one (none for the first turn); none at the end."""
        ...


@dataclass(slots=True)
class Conversation:
    """A session with its place in the load; a unit of a loop."""

    session: Session
    is_warmup: bool
    due_ns: int | None
    first: Planned
    """The first turn, made beforehand."""
    think_ns: Sequence[int]
    """Pauses before the second turn and those after it."""

    @property
    def stage(self) -> str | None:
        return self.first.stage

    @stage.setter
    def stage(self, name: str) -> None:
        self.first.stage = name


async def hold(conversation: Conversation, scheduled_ns: int, *, plan: Callable[[Planned, Prompt], Planned], send: Send,
               read: Callable[[Exchange], str | None], tally: Tally) -> None:
    """Sends a conversation's turns one after another. One that fails has no next turn.

    Args:
        plan: makes a turn's request of the turn before it and the prompt.
        read: an exchange's text, none when it failed.
    """
    planned = conversation.first
    for think_ns in (*conversation.think_ns, 0):
        exchange = await send(planned.request)
        tally.ended(planned, exchange, scheduled_ns)
        answer = read(exchange)
        if answer is None or tally.result.is_server_failing:
            return
        prompt = conversation.session.next_request(answer)
        if prompt is None:
            return
        planned = plan(planned, prompt)
        scheduled_ns = exchange.end_ns + think_ns
        await sleep_until(scheduled_ns)
