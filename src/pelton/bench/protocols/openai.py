"""The OpenAI protocol: chat completions and completions, streaming or not, as vLLM, SGLang, TensorRT-LLM,
llama.cpp, Ollama, transformers and Pelton serve it.

Reasoning is `reasoning_content` (vLLM, SGLang, llama.cpp) or `reasoning` (Ollama, newer vLLM). llama.cpp adds `timings`
to its last chunk, with the tokens it took from its cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from pelton.bench.client import Exchange, Failure
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import Answer, begin_answer, error_text, has_body, read_count, read_object
from pelton.bench.protocols.dialect import OutputControl
from pelton.bench.protocols.sse import read_events

OUTPUT_CONTROLS: tuple[OutputControl, ...] = ("ignore_eos+min_tokens", "ignore_eos", "max_tokens")
ROUTES = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, kw_only=True)
class OpenAIDialect:
    """How requests to this server are spelt: what it was found to accept."""

    model: str
    endpoint: str
    temperature: float
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields added to every request."""
    output_control: OutputControl = "ignore_eos+min_tokens"
    asks_stream_usage: bool = True
    can_stream: bool = True

    def route(self, *, stream: bool) -> str:
        return ROUTES[self.endpoint]

    def body(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "max_tokens": output_tokens,
                                  "temperature": self.temperature, "stream": stream}
        if self.endpoint == "chat":
            fields["messages"] = prompt.as_messages
        else:
            fields["prompt"] = prompt.token_ids if prompt.token_ids is not None else prompt.text
        if self.output_control != "max_tokens":
            fields["ignore_eos"] = True
        if self.output_control == "ignore_eos+min_tokens":
            fields["min_tokens"] = output_tokens
        if stream and self.asks_stream_usage:
            fields["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(fields | self.extra)

    def output_variants(self, *, fixed: bool) -> Sequence[OpenAIDialect]:
        controls = OUTPUT_CONTROLS if fixed else OUTPUT_CONTROLS[-1:]
        return [dataclasses.replace(self, output_control=control) for control in controls]

    def stream_variants(self) -> Sequence[OpenAIDialect]:
        return [dataclasses.replace(self, asks_stream_usage=asks) for asks in (True, False)]

    def read(self, exchange: Exchange, *, stream: bool) -> Answer:
        answer = begin_answer(exchange)
        if has_body(exchange, stream=stream):
            if stream:
                _read_stream(exchange, answer)
            else:
                _read_whole(exchange.response.body, answer)
        return answer


def _read_whole(body: bytes, answer: Answer) -> None:
    try:
        data = read_object(body)
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
        answer.count_chunk(stamp)
        try:
            data = read_object(event)
            if data.get("error"):
                answer.failure = Failure("stream_error", error_text(event))
                break
            _read_usage(data, answer)
            choice = _first_choice(data)
            if choice is None:
                continue
            reasoning, content = _text_of(choice, "delta")
            texts.append(reasoning + content)
            answer.stamp_text(stamp, reasoning, content)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        except (ValueError, TypeError, AttributeError) as error:
            answer.failure = Failure("malformed", f"event {event[:80]!r} is no completion chunk: {str(error)[:120]}")
            break
    answer.text = "".join(texts)
    if answer.failure is None and not is_done and answer.finish_reason is None:
        answer.failure = Failure("dropped", "the stream ended without finish_reason or [DONE]")


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
    """The counts of an answer or a chunk; the last ones count, for some servers send running ones with each."""
    usage, timings = data.get("usage"), data.get("timings")
    if usage:
        answer.prompt_tokens = read_count(usage, "prompt_tokens")
        answer.output_tokens = read_count(usage, "completion_tokens")
        cached = read_count(usage.get("prompt_tokens_details") or {}, "cached_tokens")
        answer.cached_tokens = answer.cached_tokens if cached is None else cached
    if isinstance(timings, dict):
        _read_timings(timings, answer)


def _read_timings(timings: dict[str, Any], answer: Answer) -> None:
    """llama.cpp's: prompt_n tokens were computed and cache_n taken from the cache."""
    cached, computed = read_count(timings, "cache_n"), read_count(timings, "prompt_n")
    if answer.cached_tokens is None:
        answer.cached_tokens = cached
    if answer.prompt_tokens is None and cached is not None and computed is not None:
        answer.prompt_tokens = cached + computed
    if answer.output_tokens is None:
        answer.output_tokens = read_count(timings, "predicted_n")
