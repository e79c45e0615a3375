"""OpenAI's request objects, with the sampling fields vLLM adds, and how a body becomes one of them.

Every field of the API is declared: those in UNSUPPORTED are refused unless they ask for nothing, those commented as
ignored change nothing here. Anything else is an error that names the field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pelton.errors import RequestError

T = TypeVar("T", bound="GenerationFields")


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream tells beside the text."""

    include_usage: bool = False
    """One more chunk before [DONE] with the token counts."""
    continuous_usage_stats: bool = False
    """Token counts so far on every chunk (vLLM)."""
    include_obfuscation: bool | None = None
    """Ignored: chunks are never padded."""


class GenerationFields(msgspec.Struct, kw_only=True):
    """What /v1/chat/completions and /v1/completions share."""

    model: str | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None  # ignored

    # vLLM's additions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None


class ChatRequest(GenerationFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None  # vLLM
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM
    reasoning_effort: str | None = None  # handed to the chat template

    metadata: dict[str, Any] | None = None  # ignored, as all up to verbosity
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    web_search_options: Any = None


class CompletionRequest(GenerationFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Any
    """A string, a list of strings, a list of token ids, or a list of lists of token ids."""
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    response_format: Any = None


def _asks_for_text(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio": (lambda v: False, "this server makes text only"),
    "function_call": (lambda v: v in ("none", "auto"), "function calling is not supported yet"),
    "functions": (lambda v: v == [], "function calling is not supported yet"),
    "modalities": (lambda v: v == ["text"], "this server makes text only"),
    "moderation": (lambda v: False, "moderation is not supported"),
    "response_format": (_asks_for_text, "structured output is not supported yet"),
    "suffix": (lambda v: v == "", "text between a prompt and a suffix is not supported yet"),
    "tool_choice": (lambda v: v in ("none", "auto"), "tool calls are not supported yet"),
    "tools": (lambda v: v == [], "tool calls are not supported yet"),
    "web_search_options": (lambda v: False, "web search is not supported"),
}
"""Field -> (whether a value asks for nothing special, why it is refused otherwise)."""


def parse_body(kind: type[T], body: bytes) -> T:
    """Makes a request object of a JSON body.

    Raises:
        RequestError: no JSON, no object, an unknown field, a wrong type, or a field that is not supported.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise RequestError("the request body must be a JSON object", code="invalid_json")
    refuse_unknown(kind, data)
    try:
        request = msgspec.convert(data, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _as_request_error(error) from None
    for name, (is_harmless, reason) in UNSUPPORTED.items():
        value = getattr(request, name, None)
        if value is not None and not is_harmless(value):
            raise RequestError(f"{name}: {reason}", param=name, code="unsupported_parameter")
    return request


def refuse_unknown(kind: type[msgspec.Struct], data: dict[str, Any]) -> None:
    """Raises RequestError for the first key that `kind` does not declare, with the nearest one it does."""
    known = kind.__struct_fields__
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name[:64], known, n=1)
            hint = f"did you mean {near[0]}?" if near else "it is no field of this API"
            raise RequestError(f"unknown field {name[:64]!r}: {hint}", param=name[:64], code="unknown_parameter")


def _as_request_error(error: Exception) -> RequestError:
    """msgspec's text as ours: the field first, then what was expected."""
    text = str(error)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        return RequestError(f"{missing[1]}: required field is missing", param=missing[1], code="missing_parameter")
    reason, _, path = text.partition(" - at `")
    path = path.removesuffix("`").removeprefix("key in ").removeprefix("$").lstrip(".")
    name = path or "body"
    return RequestError(f"{name}: {reason[0].lower()}{reason[1:]}", param=name, code="invalid_type")
