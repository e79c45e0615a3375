"""A conversation's content: the user's turns, with the server's own answers between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.vocabulary import Messages


class TurnSession:
    """Each turn's prompt is the whole conversation up to it."""

    def __init__(self, first: Prompt, later: Iterator[str], count: Callable[[Messages], int]) -> None:
        """Args:
            later: texts of the user's later turns.
            count: tokens of a conversation, template included, by the client's count.
        """
        self._first = first
        self._later = later
        self._count = count
        self._messages = first.as_messages

    def next_request(self, previous_answer: str | None) -> Prompt | None:
        """The next turn, given the answer to the last one (none for the first turn); none at the end."""
        if previous_answer is None:
            return self._first
        text = next(self._later, None)
        if text is None:
            return None
        self._messages = [*self._messages, {"role": "assistant", "content": previous_answer},
                          {"role": "user", "content": text}]
        return Prompt(text="", token_ids=None, num_tokens=self._count(self._messages), messages=self._messages)
