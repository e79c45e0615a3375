"""Chat templates: the jinja program of a model, run in a sandbox over the messages of a request.

The variables, filters and tags are those that templates on the Hugging Face hub rely on: bos_token and its kin,
raise_exception, strftime_now, tojson without HTML escaping, break and continue, {% generation %}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pelton.errors import CheckpointError, RequestError


class _Refusal(Exception):
    """The template itself says that these messages cannot be rendered."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here its body is all that matters."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain attribute

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", _GenerationTag])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template.

    Args:
        source: the jinja text.
        variables: what every rendering sees: special tokens by name (bos_token, eos_token, ...).

    Raises:
        CheckpointError: the source is no valid jinja.
    """

    def __init__(self, source: str, variables: dict[str, str]):
        try:
            self._template = _make_environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"chat template: line {error.lineno}: {error.message}") from None
        self._variables = variables

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None = None, *,
               add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation.

        Args:
            messages: OpenAI's format; `content` is a string, a list of text parts or None.
            variables: what else a template may know: tools, documents, enable_thinking, ...
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            RequestError: the template refuses the messages or cannot handle them.
        """
        known = {"tools": None, "documents": None, **self._variables, **(variables or {}),
                 "messages": [_flatten(message) for message in messages],
                 "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(known)
        except _Refusal as error:
            raise RequestError(f"messages: the model's chat template refuses them: {error}", param="messages") from None
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RequestError("messages: the model's chat template cannot handle them: "
                               f"{type(error).__name__}: {error}", param="messages") from None


def _flatten(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is one string: templates of text models expect no list of parts."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError('messages: content parts must be {"type": "text", "text": "..."}; '
                               "this server takes text only", param="messages")
    return {**message, "content": "\n".join(part["text"] for part in parts)}
