"""The common beginning and end of the OpenAI routes: body to request object, tokens to usage, chunks to bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from pelton.errors import RequestError
from pelton.server.body import read_body
from pelton.server.generation import Generation, Usage
from pelton.server.openai.protocol import GenerationFields, parse_body
from pelton.server.state import ServerState
from pelton.types import SamplingParams

T = TypeVar("T", bound=GenerationFields)
encode_json = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
MARK = "\x00"
"""Where PlainChunk puts the text."""
MAX_SALT_CHARS = 256


@contextmanager
def counting_rejections(state: ServerState) -> Iterator[None]:
    """Counts a request that is refused at the door; those the engine gets are counted by their Generation."""
    try:
        yield
    except RequestError:
        state.metrics.requests.add(label="rejected")
        raise


async def read_call(request: Request, kind: type[T]) -> T:
    """Reads and checks a request's body.

    Raises:
        RequestError: it is too large, malformed, or names another model.
    """
    state: ServerState = request.app.state.pelton
    call = parse_body(kind, await read_body(request, state.config.max_body_bytes))
    if call.model is not None:
        check_model(call.model, state)
    if call.stream_options is not None and not call.stream:
        raise RequestError("stream_options is only allowed with stream: true", param="stream_options")
    if call.priority is not None and not -(2**31) <= call.priority < 2**31:
        raise RequestError(f"priority must be a 32-bit integer, got {call.priority}", param="priority")
    if call.cache_salt is not None and len(call.cache_salt) > MAX_SALT_CHARS:
        raise RequestError(f"cache_salt may have at most {MAX_SALT_CHARS} characters", param="cache_salt")
    if call.stream and call.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs is not available with stream: true", param="prompt_logprobs")
    return call


def check_model(name: str, state: ServerState) -> None:
    """Raises RequestError (404) unless the server serves a model of this name."""
    if name != state.model_name:
        raise RequestError(f"model {name!r} does not exist here; this server has {state.model_name!r}", param="model",
                           code="model_not_found", status=404)


def start(state: ServerState, call: GenerationFields, prompts: list[list[int]], params: SamplingParams, *,
          max_tokens: list[int], prefix: str, arrival: float) -> tuple[Generation, dict[str, Any]]:
    """The generation of a call, and the fields its answers begin with: id, created, model."""
    request_id = f"{prefix}-{uuid.uuid4().hex}"
    generation = Generation(state, prompts, params, max_tokens=max_tokens, request_id=request_id, arrival=arrival,
                            priority=call.priority or 0, cache_salt=call.cache_salt or "")
    return generation, {"id": request_id, "created": int(time.time()), "model": state.model_name}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {"prompt_tokens": usage.num_prompt_tokens, "completion_tokens": usage.num_completion_tokens,
            "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens}}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(data) + b"\n\n"


class PlainChunk:
    """Writes the chunk that nearly all tokens get, around ready-made bytes.

    Args:
        chunk: such a chunk with index -1 and MARK as its text.
    """

    def __init__(self, chunk: dict[str, Any]):
        self._head, rest = event(chunk).split(b'"index":-1', 1)
        self._middle, self._end = rest.split(encode_json(MARK), 1)

    def encode(self, choice: int, text: str) -> bytes:
        """The chunk with this choice's number and text."""
        return b'%b"index":%d%b%b%b' % (self._head, choice, self._middle, encode_json(text), self._end)


class UsageTail:
    """How the chunks of one stream tell usage: not at all, `null` until a last chunk of its own, or on each."""

    def __init__(self, call: GenerationFields, usage: Usage):
        options = call.stream_options
        self.is_asked = options is not None and (options.include_usage or options.continuous_usage_stats)
        self.is_continuous = options is not None and options.continuous_usage_stats
        self.has_last = options is not None and options.include_usage
        self._usage = usage

    def fields(self) -> dict[str, Any]:
        """What a chunk with text adds to its object."""
        if not self.is_asked:
            return {}
        return {"usage": usage_object(self._usage) if self.is_continuous else None}

    def last(self, frame: dict[str, Any]) -> bytes:
        """The events that end a stream."""
        if not self.has_last:
            return DONE
        return event({**frame, "choices": [], "usage": usage_object(self._usage)}) + DONE
