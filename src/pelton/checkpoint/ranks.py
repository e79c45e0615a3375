"""Writes the files of all ranks of a model, and checks them against the checkpoint they came from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pelton.checkpoint.progress import Advance
from pelton.checkpoint.reader import TensorFile
from pelton.checkpoint.shard import assemble, check_parallel, cut, rank_plans, same_bits, stage_weights
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.writer import TensorFileWriter
from pelton.config import Dtype, ModelConfig, ParallelConfig
from pelton.errors import CheckpointError

if TYPE_CHECKING:
    from pelton.models.weights import WeightSpec

NUM_THREADS = 4
"""That fuse, cast and write: one alone is slower than the page cache."""


def num_weight_bytes(config: ModelConfig, parallel: ParallelConfig, dtype: Dtype) -> int:
    """Bytes of all ranks' weights together, repeated ones counted as often as they are stored."""
    check_parallel(config, parallel)
    return sum(plan.num_bytes for rank in range(parallel.world_size)
               for plan in rank_plans(config, parallel, rank, dtype))


def write_rank_files(source: CheckpointSource, parallel: ParallelConfig, paths: list[Path], advance: Advance) -> None:
    """Writes one safetensors file per rank, tensor by tensor: no more than NUM_THREADS whole tensors are in memory.

    Args:
        paths: one per rank; existing files are overwritten.
        advance: called with the bytes written.

    Raises:
        CheckpointError: the source cannot be read, or its values do not fit into the type.
        OSError: a file cannot be written.
    """
    check_parallel(source.config, parallel)
    tp_size = parallel.tp_size
    for pp_rank in range(parallel.pp_size):
        ranks = range(pp_rank * tp_size, (pp_rank + 1) * tp_size)
        writers = [TensorFileWriter(paths[rank], rank_plans(source.config, parallel, rank, source.dtype))
                   for rank in ranks]
        try:
            _write_stage(source, stage_weights(source.config, pp_rank=pp_rank, pp_size=parallel.pp_size), writers,
                         advance)
        except BaseException:
            for writer in writers:
                writer.abandon()
            raise
        for writer in writers:
            writer.close()


def _write_stage(source: CheckpointSource, specs: list[WeightSpec], writers: list[TensorFileWriter],
                 advance: Advance) -> None:
    """Each tensor to the files of the ranks of one stage, a share to each; several tensors at once."""

    def write(spec: WeightSpec) -> int:
        whole, num_bytes = source.read(spec), 0
        for tp_rank, writer in enumerate(writers):
            part = cut(whole, spec, tp_rank=tp_rank, tp_size=len(writers))
            writer.write(spec.name, part)
            num_bytes += part.nbytes
        return num_bytes

    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        for num_bytes in pool.map(write, specs):
            advance(num_bytes)
    finally:
        pool.shutdown(cancel_futures=True)


def check_rank_files(source: CheckpointSource, parallel: ParallelConfig, paths: list[Path], advance: Advance) -> None:
    """Reads the rank files back, puts each tensor together again and compares it bit by bit with the source.

    Raises:
        CheckpointError: what was written is not what was read.
    """
    for pp_rank in range(parallel.pp_size):
        first = pp_rank * parallel.tp_size
        files = [TensorFile(path) for path in paths[first : first + parallel.tp_size]]
        for spec in stage_weights(source.config, pp_rank=pp_rank, pp_size=parallel.pp_size):
            _check_tensor(source, spec, files)
            advance(sum(file.entries[spec.name].num_bytes for file in files))


def _check_tensor(source: CheckpointSource, spec: WeightSpec, files: list[TensorFile]) -> None:
    reason = "differs from the source"
    try:
        if same_bits(assemble([file.read(spec.name) for file in files], spec), source.read(spec)):
            return
    except (ValueError, KeyError) as error:
        reason = str(error)
    raise CheckpointError(f"{files[0].path}: tensor {spec.name!r}, written just now and read back, is wrong "
                          f"({reason}); the disk or the memory is faulty, or the source changed meanwhile")
