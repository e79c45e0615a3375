"""One prompt, as the protocols send it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Its content as text, as token ids where the route takes them, or as the messages of a conversation."""

    text: str
    token_ids: list[int] | None
    num_tokens: int
    """Tokens of the whole prompt, template included, by the client's count."""
    messages: list[dict[str, str]] | None = None
    """Role and content of each, where it is more than one message of the user."""
    prefix_tokens: int = 0
    """Leading tokens of the content that other prompts were asked to begin with too."""

    @property
    def as_messages(self) -> list[dict[str, str]]:
        """What a chat route is sent."""
        return [{"role": "user", "content": self.text}] if self.messages is None else self.messages
