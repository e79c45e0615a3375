"""Ollama's own API: /api/chat, and /api/generate with raw prompts. Streams are lines of JSON.

The last object has prompt_eval_count and eval_count. Ollama has no way to go on after an end-of-sequence token, so the
output length is open-ended. Its OpenAI route needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pelton.bench.client import Exchange, Failure
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import (
    Answer,
    begin_answer,
    error_text,
    has_body,
    read_count,
    read_lines,
    read_object,
)
from pelton.bench.protocols.dialect import OutputControl


@dataclass(frozen=True, kw_only=True)
class OllamaDialect:
    """Spells requests for Ollama."""

    model: str
    endpoint: str
    temperature: float
    prefix: str = ""
    """Path before /api."""
    extra: dict[str, Any] = field(default_factory=dict)
    output_control: OutputControl = "max_tokens"
    can_stream: bool = True

    def route(self, *, stream: bool) -> str:
        return f"/{self.prefix}/api/{'chat' if self.endpoint == 'chat' else 'generate'}"

    def body(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        options = {"num_predict": output_tokens, "temperature": self.temperature, **self.extra.get("options", {})}
        fields: dict[str, Any] = {"model": self.model, "stream": stream}
        if self.endpoint == "chat":
            fields["messages"] = prompt.as_messages
        else:
            fields |= {"prompt": prompt.text, "raw": True}
        return msgspec.json.encode({**fields, **self.extra, "options": options})

    def output_variants(self, *, fixed: bool) -> Sequence[OllamaDialect]:
        return [self]

    def stream_variants(self) -> Sequence[OllamaDialect]:
        return [self]

    def read(self, exchange: Exchange, *, stream: bool) -> Answer:
        answer = begin_answer(exchange)
        if not has_body(exchange, stream=stream):
            return answer
        texts: list[str] = []
        is_done = False
        for stamp, line in read_lines(exchange.response.pieces):
            if stream:
                answer.count_chunk(stamp)
            try:
                data = read_object(line)
                if data.get("error"):
                    answer.failure = Failure("stream_error", error_text(line))
                    break
                reasoning, content = _text_of(data)
                is_done = data["done"]
                answer.prompt_tokens = read_count(data, "prompt_eval_count")
                answer.output_tokens = read_count(data, "eval_count")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                malformed = Failure("malformed", f"line {line[:80]!r} is no answer of Ollama: {str(error)[:120]}")
                answer.failure = answer.failure or malformed  # a line that was cut off is no second failure
                break
            texts.append(reasoning + content)
            if stream:
                answer.stamp_text(stamp, reasoning, content)
            answer.finish_reason = data.get("done_reason") or answer.finish_reason
        answer.text = "".join(texts)
        if answer.failure is None and not is_done:
            answer.failure = Failure("dropped", "the answer ended without done")
        return answer


def _text_of(data: dict[str, Any]) -> tuple[str, str]:
    """(reasoning, content) of one line."""
    found = data.get("message", data)
    content = found.get("content", "") if "message" in data else found["response"]
    return found.get("thinking") or "", content or ""
