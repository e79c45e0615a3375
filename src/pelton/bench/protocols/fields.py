"""Fields that a user adds to every request."""

from __future__ import annotations

from typing import Any

import msgspec

from pelton.errors import ConfigError


def read_fields(name: str, text: str | None) -> dict[str, Any]:
    """A JSON object, or `cache_prompt:false,n_probs:1`; values that are no JSON are text.

    Raises:
        ConfigError: neither; the text names the option.
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{name} is no JSON object: {error}") from None
    fields = {}
    for part in text.split(","):
        key, colon, value = part.strip().partition(":")
        if not key or not colon:
            raise ConfigError(f"{name} must be NAME:VALUE joined by commas, or a JSON object, got {part.strip()!r}")
        try:
            fields[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            fields[key] = value
    return fields
