"""The two kinds of checkpoint an engine is built from, behind one small interface: weights by rank, and a tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, Protocol

from pelton.checkpoint.hf_config import CONFIG_NAME
from pelton.checkpoint.pelton_checkpoint import (
    MARKER_NAME,
    is_pelton_checkpoint,
    rank_name,
    read_pelton_checkpoint,
    verify_pelton_checkpoint,
)
from pelton.checkpoint.progress import Advance
from pelton.checkpoint.ranks import num_weight_bytes, write_rank_files
from pelton.checkpoint.reader import TensorFile, weight_files
from pelton.checkpoint.shard import check_parallel, rank_plans
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.tokenizer_files import copy_tokenizer
from pelton.checkpoint.writer import PAD_PREFIX, TensorFileWriter
from pelton.config import Dtype, ModelConfig, ParallelConfig
from pelton.errors import CheckpointError, ConfigError
from pelton.manifest import TOKENIZER_DIR


class BuildInput(Protocol):
    """What build reads."""

    config: ModelConfig
    dtype: Dtype
    parallel: ParallelConfig

    def weight_sources(self) -> list[Path]:
        """The files that the weights are made from."""

    def write_weights(self, paths: list[Path], advance: Advance) -> None:
        """Writes one file per rank."""

    def copy_tokenizer(self, target: Path) -> None:
        """Writes the tokenizer's files into a folder that exists."""


def open_input(path: Path, dtype: Dtype | Literal["auto"], parallel: ParallelConfig | None) -> BuildInput:
    """Opens a Hugging Face checkpoint, or one that `convert` wrote, and checks that it can be built.

    Raises:
        CheckpointError: it is damaged or not supported. ConfigError: it cannot be split as asked.
    """
    made = ConvertedInput if is_pelton_checkpoint(path) else CheckpointInput
    return made(path, dtype, parallel)


class CheckpointInput:
    """A Hugging Face checkpoint: fused, cast and cut while it is written."""

    def __init__(self, path: Path, dtype: Dtype | Literal["auto"], parallel: ParallelConfig | None):
        self._path = path
        self._source = CheckpointSource(path, dtype)
        self.config, self.dtype = self._source.config, self._source.dtype
        self.parallel = parallel or ParallelConfig()
        check_parallel(self.config, self.parallel)

    def weight_sources(self) -> list[Path]:
        return [self._path / CONFIG_NAME, *weight_files(self._path)]

    def write_weights(self, paths: list[Path], advance: Advance) -> None:
        write_rank_files(self._source, self.parallel, paths, advance)

    def copy_tokenizer(self, target: Path) -> None:
        copy_tokenizer(self._path, target)


class ConvertedInput:
    """A checkpoint of rank files: its split is kept, its type may change."""

    def __init__(self, path: Path, dtype: Dtype | Literal["auto"], parallel: ParallelConfig | None):
        self._path = path
        checkpoint = read_pelton_checkpoint(path)
        if parallel not in (None, ParallelConfig(), checkpoint.parallel):
            have = checkpoint.parallel
            raise ConfigError(f"tp_size and pp_size: {path} was converted for {have.tp_size} and {have.pp_size}; "
                              f"convert {checkpoint.source} again for {parallel.tp_size} and {parallel.pp_size}")
        verify_pelton_checkpoint(path, checkpoint)
        self.config, self.parallel = checkpoint.model, checkpoint.parallel
        self._stored_dtype = checkpoint.dtype
        self.dtype: Dtype = checkpoint.dtype if dtype == "auto" else dtype

    def weight_sources(self) -> list[Path]:
        return [self._path / name for name in (MARKER_NAME, *map(rank_name, range(self.parallel.world_size)))]

    def write_weights(self, paths: list[Path], advance: Advance) -> None:
        import torch

        for rank, path in enumerate(paths):
            file = self._open_rank(rank)
            writer = TensorFileWriter(path, rank_plans(self.config, self.parallel, rank, self.dtype))
            for name in file.entries:
                if name.startswith(PAD_PREFIX):
                    continue
                tensor = file.read(name).to(getattr(torch, self.dtype))
                writer.write(name, tensor)
                advance(tensor.nbytes)
            writer.close()

    def copy_tokenizer(self, target: Path) -> None:
        shutil.copytree(self._path / TOKENIZER_DIR, target, dirs_exist_ok=True)

    def _open_rank(self, rank: int) -> TensorFile:
        file = TensorFile(self._path / rank_name(rank))
        stored = [(entry.name, entry.shape) for entry in file.entries.values()
                  if not entry.name.startswith(PAD_PREFIX)]
        plans = rank_plans(self.config, self.parallel, rank, self._stored_dtype)
        if stored != [(plan.name, plan.shape) for plan in plans]:
            raise CheckpointError(f"{file.path}: its tensors are not those of this version of Pelton; convert again")
        return file


def input_bytes(source: BuildInput) -> int:
    """Bytes of all ranks' weights in the engine."""
    return num_weight_bytes(source.config, source.parallel, source.dtype)
