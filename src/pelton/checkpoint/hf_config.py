"""Reads the JSON files of a Hugging Face checkpoint that describe the model. Knows no tensors.

Fields of an architecture are read where the architecture is declared (pelton/models); what all share is here: finding
the files, refusing what cannot run, and joining config.json with generation_config.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError, ConfigError
from pelton.manifest import is_engine_dir, read_manifest
from pelton.models import registry

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"


def load_model_config(path: Path | str) -> ModelConfig:
    """The shape of the model in a checkpoint directory, a converted checkpoint or an engine directory.

    `eos_ids` are those of config.json followed by those that generation_config.json adds: chat models end a turn with
    a token that only the latter names.

    Raises:
        CheckpointError: a file is missing or damaged, the architecture or an option of it is not supported, or the
            weights are quantized in a way that cannot be read.
        EngineError: an engine directory is refused.
    """
    from pelton.checkpoint.pelton_checkpoint import is_pelton_checkpoint, read_pelton_checkpoint

    path = Path(path)
    if is_engine_dir(path):
        return read_manifest(path).model
    if is_pelton_checkpoint(path):
        return read_pelton_checkpoint(path).model
    hf = load_hf_config(path)
    _refuse_quantized(hf, path / CONFIG_NAME)
    try:
        config = registry.parse_config(hf)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path / CONFIG_NAME}: {error}") from None
    more_ids = token_ids(load_generation_config(path), "eos_token_id", path / GENERATION_CONFIG_NAME)
    config = dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *more_ids))))
    for name, ids in (("eos_token_id", config.eos_ids), ("bos_token_id", (config.bos_id,))):
        if any(token is not None and token >= config.vocab_size for token in ids):
            raise CheckpointError(f"{path}: {name} {ids} lies beyond vocab_size {config.vocab_size}")
    return config


def load_hf_config(path: Path) -> dict[str, Any]:
    """config.json as it stands.

    Raises:
        CheckpointError: the directory or the file is missing, or it is not a JSON object.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory")
    file = path / CONFIG_NAME
    if not file.exists():
        raise CheckpointError(f"{path}: no {CONFIG_NAME}; a checkpoint directory holds {CONFIG_NAME}, "
                              "*.safetensors and tokenizer.json as Hugging Face's save_pretrained writes them")
    return read_json_object(file)


def load_generation_config(path: Path | str) -> dict[str, Any]:
    """generation_config.json (default sampling, ids that end a sequence); empty when the checkpoint has none.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    file = Path(path) / GENERATION_CONFIG_NAME
    return read_json_object(file) if file.exists() else {}


def read_json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found a {type(content).__name__}")
    return content


def token_ids(config: dict[str, Any], name: str, file: Path) -> tuple[int, ...]:
    """A field that holds one token id, a list of them, or null."""
    value = config.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise CheckpointError(f"{file}: {name} must be a token id or a list of them, got {value!r}")
    return tuple(ids)


def _refuse_quantized(hf: dict[str, Any], file: Path) -> None:
    quantization = hf.get("quantization_config") or hf.get("compression_config")
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise CheckpointError(f"{file}: quantization_config: weights quantized by {method or 'an unnamed method'} are not "
                          "supported; use the checkpoint with float32, bfloat16 or float16 weights it was made from")
