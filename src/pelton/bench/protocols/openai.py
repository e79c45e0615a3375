"""The OpenAI protocol: chat completions and completions, streaming or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from pelton.bench.client import Exchange, Failure
from pelton.bench.prompts import Prompt
from pelton.bench.protocols.sse import read_events

OutputControl = Literal["ignore_eos+min_tokens", "ignore_eos", "max_tokens"]
OUTPUT_CONTROLS: tuple[OutputControl, ...] = ("ignore_eos+min_tokens", "ignore_eos", "max_tokens")
_objects = msgspec.json.Decoder(dict[str, Any])
ROUTES = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How requests to this server are spelt: what it was found to accept."""

    model: str
    endpoint: str
    output_tokens: int
    temperature: float
    output_control: OutputControl = "ignore_eos+min_tokens"
    asks_stream_usage: bool = True

    @property
    def route(self) -> str:
        return ROUTES[self.endpoint]

    def body(self, prompt: Prompt, *, stream: bool) -> bytes:
        """The JSON body of one request."""
        fields: dict[str, Any] = {"model": self.model, "max_tokens": self.output_tokens,
                                  "temperature": self.temperature, "stream": stream}
        if self.endpoint == "chat":
            fields["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
        else:
            fields["prompt"] = prompt.token_ids if prompt.token_ids is not None else prompt.text
        if self.output_control != "max_tokens":
            fields["ignore_eos"] = True
        if self.output_control == "ignore_eos+min_tokens":
            fields["min_tokens"] = self.output_tokens
        if stream and self.asks_stream_usage:
            fields["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(fields)


@dataclass(slots=True)
class Answer:
    """What an exchange says."""

    text: str = ""
    content_ns: list[int] = field(default_factory=list)
    """Arrival of each chunk with text, reasoning included (streaming only)."""
    first_chunk_ns: int | None = None
    """Arrival of the first event, with text or without."""
    first_reasoning_ns: int | None = None
    first_content_ns: int | None = None
    """Arrival of the first text that is no reasoning."""
    num_chunks: int = 0
    """Events, with text or without."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    failure: Failure | None = None


def read_answer(exchange: Exchange, *, stream: bool) -> Answer:
    """Reads a finished exchange; a failure on the wire or in the text is recorded in the answer."""
    response, answer = exchange.response, Answer(failure=exchange.failure)
    if response.status and response.status != 200:
        if answer.failure is None:
            message = f"status {response.status}: {error_text(response.body)}"
            answer.failure = Failure(f"http_{response.status}", message)
    elif stream:
        _read_stream(exchange, answer)
    elif answer.failure is None:
        _read_whole(response.body, answer)
    return answer


def error_text(body: bytes) -> str:
    """The message of an error answer on one line, whatever its shape."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:300] or "no message"


def _read_whole(body: bytes, answer: Answer) -> None:
    try:
        data = _object(body)
        choice = _first_choice(data)
        if "error" in data or choice is None:
            raise ValueError(error_text(body))
        _read_usage(data, answer)
        answer.text = "".join(_text_of(choice, "message"))
        answer.finish_reason = choice.get("finish_reason")
    except (ValueError, TypeError, AttributeError) as error:
        answer.failure = Failure("malformed", f"the answer is no completion: {str(error)[:200]}")


def _read_stream(exchange: Exchange, answer: Answer) -> None:
    if answer.failure is None and not exchange.response.is_event_stream:
        kind = exchange.response.headers.get("content-type", "no content type")
        answer.failure = Failure("malformed", f"asked for a stream, got {kind}")
        return
    texts: list[str] = []
    is_done = False
    for stamp, event in read_events(exchange.response.pieces):
        if event.strip() == b"[DONE]":
            is_done = True
            break
        answer.num_chunks += 1
        if answer.first_chunk_ns is None:
            answer.first_chunk_ns = stamp
        try:
            data = _object(event)
            if data.get("error"):
                answer.failure = Failure("stream_error", error_text(event))
                break
            _read_usage(data, answer)
            choice = _first_choice(data)
            if choice is None:
                continue
            reasoning, content = _text_of(choice, "delta")
            if reasoning or content:
                texts.append(reasoning + content)
                answer.content_ns.append(stamp)
            if reasoning and answer.first_reasoning_ns is None:
                answer.first_reasoning_ns = stamp
            if content and answer.first_content_ns is None:
                answer.first_content_ns = stamp
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        except (ValueError, TypeError, AttributeError) as error:
            answer.failure = Failure("malformed", f"event {event[:80]!r} is no completion chunk: {str(error)[:120]}")
            break
    answer.text = "".join(texts)
    if answer.failure is None and not is_done and answer.finish_reason is None:
        answer.failure = Failure("dropped", "the stream ended without finish_reason or [DONE]")


def _object(data: bytes) -> dict[str, Any]:
    try:
        return _objects.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(str(error)) from None


def _first_choice(data: dict[str, Any]) -> dict[str, Any] | None:
    choices = data.get("choices")
    if not choices:
        return None
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise ValueError("choices is no list of objects")
    return choices[0]


def _text_of(choice: dict[str, Any], part: Literal["message", "delta"]) -> tuple[str, str]:
    """(reasoning, content) of a chat choice, ("", text) of a completion."""
    if "text" in choice:
        return "", choice["text"] or ""
    found = choice.get(part) or {}
    return found.get("reasoning_content") or found.get("reasoning") or "", found.get("content") or ""


def _read_usage(data: dict[str, Any], answer: Answer) -> None:
    usage = data.get("usage")
    if not usage:
        return
    answer.prompt_tokens = _count(usage, "prompt_tokens")
    answer.output_tokens = _count(usage, "completion_tokens")
    answer.cached_tokens = _count(usage.get("prompt_tokens_details") or {}, "cached_tokens")


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"usage.{key} is {value!r}")
    return value
