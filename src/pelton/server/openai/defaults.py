"""The sampling that a model's makers recommend, for what a request leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pelton.errors import CheckpointError, RequestError
from pelton.types import SamplingParams

FILE = "generation_config.json"
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Fields that vLLM takes from the file too; penalties and seeds of other names are no model's business."""


def read_sampling_defaults(folder: Path) -> dict[str, Any]:
    """Fields of SamplingParams from generation_config.json (transformers' format); empty without the file.

    Raises:
        CheckpointError: the file is damaged, or a value is none that sampling takes; the text says how to go without.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    values = {name: content[name] for name in NAMES if content.get(name) is not None}
    try:
        SamplingParams(**values)
    except RequestError as error:
        raise CheckpointError(f"{file}: {error}; mend it, or serve with --generation-config none") from None
    return values
