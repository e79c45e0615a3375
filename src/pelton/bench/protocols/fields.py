"""Fields that a user adds to every request, beside those that the benchmark decides about itself."""

from __future__ import annotations

from typing import Any

import msgspec

from pelton.errors import ConfigError

LENGTH = "give output_tokens instead"
FIXED = "fixed_output asks for it where the server takes it; give no-fixed-output to leave it out"
PROMPT = "give prompt_tokens, prompt_text or prompt_data instead"
STREAM = "serve measures both ways, sweep and search stream"
COUNTED = "the counts are read from it"
OWN_FIELDS = {
    "model": "give model instead", "temperature": "give temperature as an option of its own",
    "max_tokens": LENGTH, "max_completion_tokens": LENGTH, "max_new_tokens": LENGTH, "n_predict": LENGTH,
    "num_predict": LENGTH, "min_tokens": FIXED, "ignore_eos": FIXED, "stream": STREAM, "stream_options": STREAM,
    "prompt": PROMPT, "messages": PROMPT, "text_input": PROMPT, "raw": PROMPT, "inputs": PROMPT,
    "n": "one answer a request is measured", "best_of": "one answer a request is measured",
    "return_num_input_tokens": COUNTED, "return_num_output_tokens": COUNTED, "return_finish_reason": COUNTED,
    "exclude_input_in_output": "the answer alone is read",
}
"""What every protocol's requests have from options, under all its names, and where to ask for it."""
OBJECTS = ("options", "parameters", "sampling_parameters")
"""Fields that hold further ones; of Ollama, of Triton's models and of its vLLM back end."""


def check_added(name: str, fields: dict[str, Any]) -> None:
    """Refuses fields that would change what the result says was sent.

    Raises:
        ConfigError: there is one; the text names the option to use instead.
    """
    for key, value in fields.items():
        if key in OWN_FIELDS:
            raise ConfigError(f"{name} must leave out {key}, which the benchmark decides: {OWN_FIELDS[key]}")
        if key in OBJECTS:
            if not isinstance(value, dict):
                raise ConfigError(f"{name}: {key} must be a JSON object, got {value!r}")
            check_added(name, value)


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
