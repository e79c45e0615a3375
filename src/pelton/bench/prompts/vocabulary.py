"""What prompts need of a tokenizer, for one route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pelton.tokenizer.tokenizer import Tokenizer

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Vocabulary:
    """`encode` counts a prompt's content as the server will: inside the chat template, or with the special tokens of
    a plain prompt. `encode_plain` adds nothing. `encode_messages` counts a whole conversation as the route gets it.
    `token_text` is a single token's text within others, of special ones nothing. `frame` names what stands around a
    prompt's content.
    """

    encode: Callable[[str], list[int]]
    encode_plain: Callable[[str], list[int]]
    token_text: Callable[[int], str]
    size: int
    encode_messages: Callable[[Messages], list[int]] | None = None
    frame: str = "what the tokenizer adds to every prompt, such as BOS,"


def make_vocabulary(tokenizer: Tokenizer, *, is_chat: bool, token_ids: bool) -> Vocabulary:
    """The vocabulary of a route; routes without a chat get a conversation as plain text."""
    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def in_chat(messages: Messages) -> list[int]:
        return plain(tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def token_text(token_id: int) -> str:
        # Not `tokenizer.decode`: the whole vocabulary is read before each run.
        return "" if token_id in tokenizer.special_ids else tokenizer.pieces[token_id].decode("utf-8", "replace")

    encode = plain if token_ids else tokenizer.encode
    if is_chat:
        return Vocabulary(lambda text: in_chat([{"role": "user", "content": text}]), plain, token_text,
                          tokenizer.vocab_size, in_chat, "the chat template")
    return Vocabulary(encode, plain, token_text, tokenizer.vocab_size, lambda m: encode(flatten(m)))


def flatten(messages: Messages) -> str:
    """A conversation as one text."""
    return "\n\n".join(message["content"] for message in messages)
