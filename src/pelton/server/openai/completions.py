"""POST /v1/completions: one or many prompts, as text or as token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
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
from pelton.server.openai.logprobs import CompletionLogprobs, prompt_logprobs
from pelton.server.openai.protocol import CompletionRequest
from pelton.server.openai.sampling import check_prompt, make_sampling, resolve_max_tokens
from pelton.server.state import ServerState
from pelton.server.streaming import EventStream, unless_disconnected
from pelton.types import SamplingParams

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_CHOICES = 4096
"""Prompts times completions of one HTTP request."""


@dataclass(slots=True)
class Prompt:
    """One prompt of a request."""

    ids: list[int]
    text: str | None
    """As it was sent; None if it came as token ids."""


async def completions(request: Request) -> Response:
    """Completes prompts, as one object or as a stream of chunks.

    Raises:
        RequestError: a field is wrong; further errors as `Generation.updates`.
    """
    arrival = time.monotonic()
    state: ServerState = request.app.state.pelton
    with counting_rejections(state):
        call = await read_call(request, CompletionRequest)
        prompts = await _encode_prompts(call, state)
        answer = _Answer(state, call, prompts)
        generation, frame = start(state, call, [p.ids for p in prompts], answer.params, max_tokens=answer.max_tokens,
                                  prefix="cmpl", arrival=arrival)
    frame["object"] = "text_completion"
    if call.stream:
        return EventStream(answer.chunks(generation, frame))
    return JsonResponse(await unless_disconnected(answer.whole(generation, frame), request.receive))


async def _encode_prompts(call: CompletionRequest, state: ServerState) -> list[Prompt]:
    prompts = split_prompts(call.prompt)
    if len(prompts) * (call.n or 1) > MAX_CHOICES:
        raise RequestError(f"prompt: at most {MAX_CHOICES} completions per request, got {len(prompts)} prompts "
                           f"times n = {call.n or 1}", param="prompt")
    add_special_tokens = call.add_special_tokens is not False
    out = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            ids = [] if prompt == "" else await state.encode(
                lambda text=prompt: state.tokenizer.encode(text, add_special_tokens,
                                                           max_tokens=state.client.ready.max_input_len), len(prompt))
        else:
            ids = prompt
        check_prompt(ids, state.client.ready, param="prompt" if len(prompts) == 1 else f"prompt[{i}]")
        out.append(Prompt(ids, prompt if isinstance(prompt, str) else None))
    return out


def split_prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request: strings, or lists of token ids.

    Raises:
        RequestError: it is neither of the four forms, or there are none.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list):
        if not prompt:
            raise RequestError("prompt is empty: give at least one token", param="prompt", code="empty_prompt")
        kinds = set(map(type, prompt))  # a prompt may be long: this runs at C's speed
        if kinds == {int}:
            return [prompt]
        if kinds == {str} or (kinds == {list} and all(set(map(type, entry)) <= {int} for entry in prompt)):
            return prompt
    raise RequestError("prompt must be a string, a list of strings, a list of token ids or a list of such lists",
                       param="prompt", code="invalid_type")


class _Answer:
    """How one request's completions are told."""

    def __init__(self, state: ServerState, call: CompletionRequest, prompts: list[Prompt]):
        self._state, self._call, self._prompts = state, call, prompts
        self._n = call.n or 1
        self._has_logprobs = call.logprobs is not None
        # Scoring a prompt needs no output, but the engine makes one token: it is dropped.
        self._echo_only = bool(call.echo) and call.max_tokens == 0
        self.params = self._sampling()
        skip = self.params.skip_special_tokens
        self._echoes = [p.text if p.text is not None else state.tokenizer.decode(p.ids, skip_special_tokens=skip)
                        for p in prompts] if call.echo else [""] * len(prompts)
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def _sampling(self) -> SamplingParams:
        call, ready = self._call, self._state.client.ready
        if call.best_of is not None and call.best_of != self._n:
            raise RequestError(f"best_of: only best_of = n ({self._n}) is supported, got {call.best_of}",
                               param="best_of", code="unsupported_parameter")
        asked = 1 if self._echo_only else call.max_tokens
        self.max_tokens = [resolve_max_tokens(asked, DEFAULT_MAX_TOKENS, len(p.ids), ready) for p in self._prompts]
        scored = call.logprobs if call.echo and self._has_logprobs else None
        if call.prompt_logprobs is not None:
            scored = max(call.prompt_logprobs, scored or 0) if call.prompt_logprobs >= 0 else call.prompt_logprobs
        return make_sampling(call, self._state, max_tokens=max(self.max_tokens), logprobs=call.logprobs,
                             prompt_logprobs=scored)

    async def whole(self, generation: Generation, frame: dict[str, Any]) -> dict[str, Any]:
        """The whole answer as one object."""
        choices: list[dict[str, Any]] = [
            {"index": i, "text": [], "logprobs": None, "finish_reason": None, "stop_reason": None}
            for i in range(generation.num_choices)]
        async with aclosing(generation.updates()) as updates:
            async for update in updates:
                choice, part = choices[update.choice], self._choice(update, is_first=not choices[update.choice]["text"])
                choice["text"].append(part.pop("text"))
                _extend(choice, part.pop("logprobs"))
                choice.update({name: value for name, value in part.items() if value is not None})
        for choice in choices:
            choice["text"] = "".join(choice["text"])
        if self._echo_only:
            generation.usage.num_completion_tokens = 0
        return {**frame, "choices": choices, "usage": usage_object(generation.usage)}

    async def chunks(self, generation: Generation, frame: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """One event per Output of the engine, empty text included, so that chunks tell tokens."""
        tail = UsageTail(self._call, generation.usage)
        choice = {"index": -1, "text": MARK, "logprobs": None, "finish_reason": None}
        plain = None
        if not (self._has_logprobs or tail.is_continuous):
            plain = PlainChunk({**frame, "choices": [choice], **tail.fields()})
        begun: set[int] = set()
        async with aclosing(generation.updates()) as updates:
            async for update in updates:
                is_first = update.choice not in begun
                if plain is not None and update.news.finish_reason is None and not (is_first and self._call.echo):
                    yield plain.encode(update.choice, update.news.text)
                else:
                    choice = self._choice(update, is_first=is_first)
                    yield event({**frame, "choices": [choice], **tail.fields()})
                begun.add(update.choice)
        if self._echo_only:
            generation.usage.num_completion_tokens = 0
        yield tail.last(frame)

    def _choice(self, update: Update, *, is_first: bool) -> dict[str, Any]:
        """What an update adds to its choice."""
        news, output = update.news, update.output
        prompt = update.choice // self._n
        text = "" if self._echo_only else news.text
        choice = {"index": update.choice, "text": self._echoes[prompt] + text if is_first else text, "logprobs": None,
                  "finish_reason": news.finish_reason, "stop_reason": news.stop_reason}
        if self._has_logprobs:
            choice["logprobs"] = self._score(update, prompt, is_first=is_first)
        if self._call.prompt_logprobs is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._state.tokenizer, output.prompt_logprobs)
        return choice

    def _score(self, update: Update, prompt: int, *, is_first: bool) -> dict[str, Any]:
        ids, output = self._prompts[prompt].ids, update.output
        token_ids, entries = list(update.news.token_ids), list(output.logprobs or [])[:len(update.news.token_ids)]
        if self._echo_only:
            token_ids, entries = [], []
        if is_first and self._call.echo:
            self._logprobs[update.choice] = CompletionLogprobs(self._state.tokenizer, (), text_start=0)
            token_ids, entries = ids + token_ids, [*(output.prompt_logprobs or [None] * len(ids)), *entries]
        elif is_first:
            self._logprobs[update.choice] = CompletionLogprobs(self._state.tokenizer, ids, text_start=0)
        return self._logprobs[update.choice].take(token_ids, entries)


def _extend(choice: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
    if logprobs is None:
        return
    if choice["logprobs"] is None:
        choice["logprobs"] = logprobs
    else:
        for name, values in logprobs.items():
            choice["logprobs"][name] += values
