"""`pelton convert`: a Hugging Face checkpoint becomes named, fused, cast and sharded tensors, one file per rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pelton.checkpoint.hub import absolute_source, resolve_model
from pelton.checkpoint.output import staged_output
from pelton.checkpoint.pelton_checkpoint import (
    MARKER_NAME,
    PeltonCheckpoint,
    is_pelton_checkpoint,
    rank_name,
    write_pelton_checkpoint,
)
from pelton.checkpoint.progress import bytes_bar
from pelton.checkpoint.ranks import check_rank_files, num_weight_bytes, write_rank_files
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.tokenizer_files import copy_tokenizer
from pelton.config import Dtype, ParallelConfig, to_dict
from pelton.errors import ConfigError
from pelton.hashing import hash_file
from pelton.manifest import TOKENIZER_DIR, Hashing, created_now, is_engine_dir, pelton_version


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `pelton convert`."""

    model: str
    """Hugging Face id, checkpoint directory, or pelton-tiny."""
    output: str
    """Folder to write; must be new, empty, or an earlier output."""
    dtype: Dtype | Literal["auto"] = "auto"
    """Type of the written weights; auto keeps the checkpoint's."""
    tp_size: int = 1
    """Ranks that share each layer."""
    pp_size: int = 1
    """Stages of consecutive layers."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    json: bool = False
    """Print what was written as JSON."""


def convert(model_dir: Path, out_dir: Path, *, dtype: Dtype | Literal["auto"] = "auto", tp_size: int = 1,
            pp_size: int = 1, source_name: str | None = None, revision: str | None = None,
            show_progress: bool = False) -> PeltonCheckpoint:
    """Writes the rank files of a checkpoint and checks them against it, bit by bit.

    The folder appears whole or not at all. Memory stays near the largest single tensor.

    Args:
        source_name: how the model was named, for the record; none: the absolute path.

    Raises:
        CheckpointError: the checkpoint is damaged, unsupported or has no tokenizer.
        ConfigError: it cannot be split like this, or the output folder may not be written.
        CapacityError: the disk is too small.
    """
    if is_pelton_checkpoint(model_dir) or is_engine_dir(model_dir):
        raise ConfigError(f"model: {model_dir} is an output of Pelton already; convert reads Hugging Face checkpoints")
    parallel = ParallelConfig(tp_size=tp_size, pp_size=pp_size)
    source = CheckpointSource(model_dir, dtype)
    num_bytes = num_weight_bytes(source.config, parallel, source.dtype)
    names = [rank_name(rank) for rank in range(parallel.world_size)]
    with staged_output(out_dir, marker=MARKER_NAME, num_bytes=num_bytes) as staging:
        (staging / TOKENIZER_DIR).mkdir()
        tokenizer_names = copy_tokenizer(model_dir, staging / TOKENIZER_DIR)
        paths = [staging / name for name in names]
        with bytes_bar("writing", num_bytes, is_shown=show_progress) as advance:
            write_rank_files(source, parallel, paths, advance)
        with bytes_bar("checking", num_bytes, is_shown=show_progress) as advance:
            check_rank_files(source, parallel, paths, advance)
        files = names + [f"{TOKENIZER_DIR}/{name}" for name in tokenizer_names]
        checkpoint = PeltonCheckpoint(
            pelton_version=pelton_version(), created_at=created_now(), source=source_name or str(model_dir.resolve()),
            revision=revision, model=source.config, parallel=parallel, dtype=source.dtype, hashing=Hashing(),
            files={name: hash_file(staging / name) for name in files},
        )
        write_pelton_checkpoint(staging, checkpoint)
    return checkpoint


def run_convert(options: ConvertOptions) -> int:
    """The command."""
    model_dir = resolve_model(options.model, revision=options.revision)
    checkpoint = convert(model_dir, Path(options.output), dtype=options.dtype, tp_size=options.tp_size,
                         pp_size=options.pp_size, source_name=absolute_source(options.model),
                         revision=options.revision, show_progress=not options.json)
    num_bytes = sum(entry.size_bytes for entry in checkpoint.files.values())
    if options.json:
        summary = {"output": options.output, "source": checkpoint.source, "dtype": checkpoint.dtype,
                   "parallel": to_dict(checkpoint.parallel), "num_bytes": num_bytes, "files": list(checkpoint.files)}
        print(json.dumps(summary))
    else:
        print(f"{options.output}: {checkpoint.model.architecture}, {checkpoint.dtype}, "
              f"{checkpoint.parallel.world_size} rank file(s), {num_bytes / 1e9:.3f} GB; read back and equal to "
              f"{checkpoint.source}")
    return 0
