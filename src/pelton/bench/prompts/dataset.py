"""Data sets of prompts: ShareGPT conversations, OpenAI batch files, and plain lines with a prompt or messages.

A file is a JSON list or JSON lines. Of a conversation the first user turn is the prompt and the reply to it the
answer; sessions (`pelton.bench.prompts.sessions`) go through all of its user turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.prompts.vocabulary import Messages
from pelton.errors import ConfigError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
         "model": "assistant", "bot": "assistant", "system": "system"}
PROMPT_FIELDS = ("prompt", "text_input", "text", "input")
ANSWER_FIELDS = ("completion", "response", "answer", "output")
LENGTH_FIELDS = ("max_completion_tokens", "max_tokens", "output_length")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a data set."""

    messages: Messages
    """What is sent: one message of the user, or a conversation up to one."""
    answer: str | None = None
    """What the data set answers."""
    output_tokens: int | None = None
    """Tokens that it asks for."""
    turns: tuple[str, ...] = ()
    """The user's later turns."""


def read_data_set(path: Path) -> list[Entry]:
    """The entries of a file; conversations without a turn of the user are left out.

    Raises:
        ConfigError: it cannot be read, or an entry is of no known form; the text names it.
    """
    entries = []
    for number, row in _rows(path):
        try:
            entry = _read_entry(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"prompt_data {str(path)!r}, entry {number}: no prompt found ({error}); wanted "
                              "ShareGPT's conversations, an OpenAI batch request, messages or a prompt") from None
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise ConfigError(f"prompt_data {str(path)!r} holds no prompts")
    return entries


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompt_data {str(path)!r} cannot be read: {error.strerror or error}") from None
    number = 1
    try:
        if data.lstrip()[:1] == b"[":
            return list(enumerate(msgspec.json.decode(data, type=list[dict[str, Any]]), 1))
        rows = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                rows.append((number, msgspec.json.decode(line, type=dict[str, Any])))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_data {str(path)!r}, line {number}: not JSON of objects ({error})") from None
    return rows


def _read_entry(row: dict[str, Any]) -> Entry | None:
    if isinstance(row.get("body"), dict):  # OpenAI batch
        return _read_entry(row["body"])
    output_tokens = next((int(row[name]) for name in LENGTH_FIELDS if row.get(name) is not None), None)
    if output_tokens is not None and output_tokens < 1:
        raise ValueError(f"{output_tokens} tokens asked for")
    for name in ("conversations", "conversation", "messages"):
        if isinstance(row.get(name), list):
            return _read_conversation([_message(m) for m in row[name]], output_tokens, is_log=name != "messages")
    prompt = next((row[name] for name in PROMPT_FIELDS if row.get(name)), None)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ValueError(f"fields {', '.join(row) or 'none'}")
    answer = next((row[name] for name in ANSWER_FIELDS if isinstance(row.get(name), str)), None)
    return Entry([{"role": "user", "content": prompt}], answer, output_tokens)


def _read_conversation(messages: Messages, output_tokens: int | None, *, is_log: bool) -> Entry | None:
    """Of a log the first turn of the user is sent; of messages, which are a request, all up to the last one's."""
    users = [i for i, m in enumerate(messages) if m["role"] == "user" and m["content"].strip()]
    if not users:
        return None
    last = users[0] if is_log else users[-1]
    follower = messages[last + 1] if last + 1 < len(messages) else None
    answer = follower["content"] if follower is not None and follower["role"] == "assistant" else None
    # A log may begin with an answer to something that is not in it; templates refuse that.
    sent = [m for m in messages[:last] if m["role"] == "system"] if is_log else messages[:last]
    return Entry([*sent, messages[last]], answer, output_tokens,
                 tuple(messages[i]["content"] for i in users if i > last))


def _message(message: dict[str, Any]) -> dict[str, str]:
    role = str(message["from"] if "from" in message else message["role"])
    content = message["value"] if "value" in message else message["content"]
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message of {role} without text")
    return {"role": ROLES.get(role, role), "content": content}


def _text_part(part: dict[str, Any]) -> str:
    if part.get("type", "text") != "text":
        raise ValueError(f"a part of type {part['type']!r}, which is not text")
    return part["text"]
