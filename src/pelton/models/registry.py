"""Finds the declaration of an architecture by the name in `architectures[0]`. Knows no tensors.

A new architecture is a file beside this one that declares ARCHITECTURE, and its line here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError
from pelton.models.architecture import Architecture

_MODULES = {
    "Gemma2ForCausalLM": "gemma2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def supported() -> list[str]:
    """Names that `get_architecture` takes."""
    return sorted(_MODULES)


def get_architecture(name: str) -> Architecture:
    """The declaration of an architecture.

    Raises:
        CheckpointError: nothing is known under that name; the text lists what is.
    """
    if name not in _MODULES:
        raise CheckpointError(f"architectures: {name!r} is not supported; supported are {', '.join(supported())}")
    architecture = import_module(f"pelton.models.{_MODULES[name]}").ARCHITECTURE
    assert architecture.name == name
    return architecture


def parse_config(hf: dict[str, Any]) -> ModelConfig:
    """Reads a Hugging Face config.json of any supported architecture.

    Raises:
        CheckpointError: the architecture, or an option of it, is not supported; the text names the field.
    """
    names = hf.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError("architectures: expected a list with the model's class name in config.json, "
                              f"got {names!r}; supported are {', '.join(supported())}")
    return get_architecture(names[0]).parse_config(hf)
