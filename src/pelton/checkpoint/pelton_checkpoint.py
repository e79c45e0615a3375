"""pelton_checkpoint.json: what stands in a folder that `convert` wrote. Knows no tensors.

    DIR/pelton_checkpoint.json
    DIR/rank-RRRR.safetensors     canonical names, fused, cast, one file per rank
    DIR/tokenizer/
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pelton.checkpoint.hf_config import read_json_object
from pelton.config import Dtype, ModelConfig, ParallelConfig, from_dict, to_dict
from pelton.errors import CheckpointError, ConfigError
from pelton.hashing import DamagedFileError, FileEntry, check_file
from pelton.manifest import Hashing

FORMAT_VERSION = 2
MARKER_NAME = "pelton_checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class PeltonCheckpoint:
    """pelton_checkpoint.json."""

    format_version: int = FORMAT_VERSION
    pelton_version: str
    created_at: str
    """UTC, ISO 8601."""
    source: str
    """The model as it was given to convert."""
    revision: str | None = None
    model: ModelConfig
    parallel: ParallelConfig
    dtype: Dtype
    hashing: Hashing
    files: dict[str, FileEntry]


def rank_name(rank: int) -> str:
    """File with the weights of one rank; rank = pp_rank * tp_size + tp_rank."""
    return f"rank-{rank:04d}.safetensors"


def is_pelton_checkpoint(path: Path) -> bool:
    return (path / MARKER_NAME).is_file()


def write_pelton_checkpoint(path: Path, checkpoint: PeltonCheckpoint) -> None:
    temporary = path / f".{MARKER_NAME}.tmp"
    temporary.write_text(json.dumps(to_dict(checkpoint), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path / MARKER_NAME)


def read_pelton_checkpoint(path: Path) -> PeltonCheckpoint:
    """Reads pelton_checkpoint.json; no other file is touched.

    Raises:
        CheckpointError: it is missing, damaged or of another format version.
    """
    file = path / MARKER_NAME
    content = read_json_object(file)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file}: format version {version!r}, this Pelton reads {FORMAT_VERSION}; convert again: "
                              f"pelton convert {content.get('source', 'MODEL')} -o {path}")
    try:
        return from_dict(PeltonCheckpoint, content, where=str(file))
    except ConfigError as error:
        raise CheckpointError(f"{error}; convert again: pelton convert {content.get('source', 'MODEL')} -o {path}"
                              ) from None


def verify_pelton_checkpoint(path: Path, checkpoint: PeltonCheckpoint, *, threads: int | None = None) -> None:
    """Raises CheckpointError when a file is missing, truncated or altered; reads all of them."""
    for name, entry in checkpoint.files.items():
        try:
            check_file(path / name, entry, threads=threads)
        except (DamagedFileError, OSError) as error:
            raise CheckpointError(f"{path}: {error}; convert again: pelton convert {checkpoint.source} -o {path}"
                                  ) from None
