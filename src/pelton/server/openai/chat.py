"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pelton.errors import RequestError
from pelton.server.errors import JsonResponse
from pelton.server.generation import Generation, Update
from pelton.server.openai.call import (
    MARK,
    PlainChunk,
    UsageTail,
    counting_rejections,
    event,
    read_call,
    start,
    usage_object,
)
from pelton.server.openai.logprobs import chat_logprobs, prompt_logprobs
from pelton.server.openai.protocol import ChatRequest
from pelton.server.openai.sampling import check_prompt, make_sampling, resolve_max_tokens
from pelton.server.state import ServerState
from pelton.server.streaming import EventStream, unless_disconnected
from pelton.types import MAX_LOGPROBS, SamplingParams


async def chat_completions(request: Request) -> Response:
    """Completes a conversation, as one object or as a stream of chunks.

    Raises:
        RequestError: a field is wrong; further errors as `Generation.updates`.
    """
    arrival = time.monotonic()
    state: ServerState = request.app.state.pelton
    with counting_rejections(state):
        call = await read_call(request, ChatRequest)
        check_messages(call.messages)
        ids = await _encode(call, state)
        check_prompt(ids, state.client.ready, param="messages")
        params = _sampling(call, state, len(ids))
    generation, frame = start(state, call, [ids], params, max_tokens=[params.max_tokens], prefix="chatcmpl",
                              arrival=arrival)
    if call.stream:
        return EventStream(_chunks(state, call, generation, frame))
    return JsonResponse(await unless_disconnected(_whole(state, call, generation, frame), request.receive))


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Refuses messages that no template could read.

    Raises:
        RequestError: there are none, or one has no role or a content of the wrong type; the text says which.
    """
    if not messages:
        raise RequestError("messages is empty: give at least one message", param="messages", code="empty_prompt")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise RequestError(f"messages[{i}].role must be a string such as 'user'", param=f"messages[{i}].role")
        if "content" not in message and not message.get("tool_calls"):
            raise RequestError(f"messages[{i}].content is missing", param=f"messages[{i}].content")
        if not isinstance(content, str | list | None) or (content is None and role in ("system", "user")):
            raise RequestError(f"messages[{i}].content must be a string or a list of parts, got {content!r:.64}",
                               param=f"messages[{i}].content")


async def _encode(call: ChatRequest, state: ServerState) -> list[int]:
    variables = dict(call.chat_template_kwargs or {})
    if call.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", call.reasoning_effort)
    for name in ("messages", "add_generation_prompt"):
        if name in variables:
            raise RequestError(f"chat_template_kwargs may not set {name}", param="chat_template_kwargs")
    num_chars = sum(len(m["content"]) if isinstance(m.get("content"), str) else len(repr(m)) for m in call.messages)
    return await state.encode(
        lambda: state.tokenizer.encode_chat(
            call.messages, variables, add_generation_prompt=call.add_generation_prompt is not False,
            add_special_tokens=bool(call.add_special_tokens), max_tokens=state.client.ready.max_input_len),
        num_chars)


def _sampling(call: ChatRequest, state: ServerState, num_prompt_tokens: int) -> SamplingParams:
    if call.max_completion_tokens is not None:
        asked, param = call.max_completion_tokens, "max_completion_tokens"
    else:
        asked, param = call.max_tokens, "max_tokens"
    max_tokens = resolve_max_tokens(asked, None, num_prompt_tokens, state.client.ready, param=param)
    top = call.top_logprobs
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise RequestError(f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {top}", param="top_logprobs")
    if top and not call.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return make_sampling(call, state, max_tokens=max_tokens, logprobs=(top or 0) if call.logprobs else None,
                         prompt_logprobs=call.prompt_logprobs)


async def _whole(state: ServerState, call: ChatRequest, generation: Generation,
                 frame: dict[str, Any]) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in range(generation.num_choices)]
    logprobs: list[list[Any]] = [[] for _ in texts]
    ends: list[Any] = [None] * len(texts)
    extra: dict[str, Any] = {}
    async with aclosing(generation.updates()) as updates:
        async for update in updates:
            news, output = update.news, update.output
            texts[update.choice].append(news.text)
            logprobs[update.choice] += (output.logprobs or [])[:len(news.token_ids)]
            if news.finish_reason is not None:
                ends[update.choice] = news
            if output.prompt_logprobs is not None:
                extra = {"prompt_logprobs": prompt_logprobs(state.tokenizer, output.prompt_logprobs)}
    choices = [{"index": i, "message": {"role": "assistant", "content": "".join(texts[i]), "refusal": None},
                "logprobs": chat_logprobs(state.tokenizer, logprobs[i]) if call.logprobs else None,
                "finish_reason": end.finish_reason, "stop_reason": end.stop_reason} for i, end in enumerate(ends)]
    return {**frame, "object": "chat.completion", "choices": choices, "usage": usage_object(generation.usage), **extra}


async def _chunks(state: ServerState, call: ChatRequest, generation: Generation,
                  frame: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """One event per Output of the engine, empty text included, so that chunks tell tokens."""
    frame = {**frame, "object": "chat.completion.chunk"}
    tail = UsageTail(call, generation.usage)
    roles = [event({**frame, "choices": [_delta(i, {"role": "assistant", "content": ""})], **tail.fields()})
             for i in range(generation.num_choices)]
    plain = None
    if not (call.logprobs or tail.is_continuous):
        plain = PlainChunk({**frame, "choices": [_delta(-1, {"content": MARK})], **tail.fields()})
    async with aclosing(generation.updates()) as updates:
        async for update in updates:
            if plain is not None and update.news.finish_reason is None:
                part = plain.encode(update.choice, update.news.text)
            else:
                part = event({**frame, "choices": [_choice(state, call, update)], **tail.fields()})
            if roles:
                part, roles = b"".join(roles) + part, []
            yield part
    yield tail.last(frame)


def _choice(state: ServerState, call: ChatRequest, update: Update) -> dict[str, Any]:
    news = update.news
    entries = (update.output.logprobs or [])[:len(news.token_ids)]
    choice = _delta(update.choice, {"content": news.text}, news.finish_reason)
    if call.logprobs:
        choice["logprobs"] = chat_logprobs(state.tokenizer, entries)
    if news.finish_reason is not None:
        choice["stop_reason"] = news.stop_reason
    return choice


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
