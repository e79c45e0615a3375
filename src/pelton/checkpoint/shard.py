"""How the canonical tensors fall to ranks: which a rank holds, which part of each, and back to the whole.

rank = pp_rank * tp_size + tp_rank. A stage holds consecutive layers; the first also the embedding, the last the final
norm and the head, and a tied embedding stands on both. Inside a stage, heads, MLP columns and vocabulary rows are cut
evenly; key and value heads fewer than tp_size are repeated on neighbouring ranks. Nothing is padded: a vocabulary that
tp_size does not divide is refused, because padded rows would be sampled unless every reader knew of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pelton.config import Dtype, ModelConfig, ParallelConfig
from pelton.errors import ConfigError
from pelton.models.registry import get_architecture
from pelton.models.weights import WeightSpec, stage_layers

if TYPE_CHECKING:
    from torch import Tensor

from pelton.checkpoint.writer import TensorPlan


def check_parallel(config: ModelConfig, parallel: ParallelConfig) -> None:
    """Raises ConfigError, naming the option and the size that does not fit, when a model cannot be split like this."""
    tp_size = parallel.tp_size
    for name in ("num_heads", "intermediate_size", "vocab_size"):
        size = getattr(config, name)
        if size % tp_size:
            raise ConfigError(f"tp_size must divide {name} ({size}), got {tp_size}")
    kv_heads = config.num_kv_heads
    if kv_heads % tp_size and tp_size % kv_heads:
        raise ConfigError(f"tp_size must divide num_kv_heads ({kv_heads}) or be a multiple of it, got {tp_size}")
    if parallel.pp_size > config.num_layers:
        raise ConfigError(f"pp_size must be at most the number of layers ({config.num_layers}), got "
                          f"{parallel.pp_size}")


def stage_weights(config: ModelConfig, *, pp_rank: int, pp_size: int) -> list[WeightSpec]:
    """The canonical tensors of one pipeline stage, whole, in the order in which they are used."""
    layers = stage_layers(config.num_layers, pp_rank=pp_rank, pp_size=pp_size)
    specs = get_architecture(config.architecture).weights(config)
    return [spec for spec in specs if spec.is_on_stage(layers=layers, num_layers=config.num_layers)]


def rank_plans(config: ModelConfig, parallel: ParallelConfig, rank: int, dtype: Dtype) -> list[TensorPlan]:
    """Names, shapes and type of the tensors in one rank's file."""
    specs = stage_weights(config, pp_rank=rank // parallel.tp_size, pp_size=parallel.pp_size)
    return [TensorPlan(spec.name, dtype, spec.rank_shape(parallel.tp_size)) for spec in specs]


def cut(whole: Tensor, spec: WeightSpec, *, tp_rank: int, tp_size: int) -> Tensor:
    """One rank's part of a canonical tensor; a view where the part is one run."""
    import torch

    if spec.shard == "none" or tp_size == 1:
        return whole
    dim = 0 if spec.shard == "rows" else 1
    runs = [whole.narrow(dim, start, stop - start)
            for start, stop in spec.rank_ranges(tp_rank=tp_rank, tp_size=tp_size)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim)


def assemble(pieces: list[Tensor], spec: WeightSpec) -> Tensor:
    """The whole tensor from the parts of all tensor-parallel ranks, in the order of the ranks.

    Raises:
        ValueError: parts that should be equal differ, or the parts do not cover the whole.
    """
    import torch

    if spec.shard == "none" or len(pieces) == 1:
        if not all(same_bits(piece, pieces[0]) for piece in pieces):
            raise ValueError("ranks hold different copies")
        return pieces[0]
    dim = 0 if spec.shard == "rows" else 1
    whole = torch.empty(spec.shape, dtype=pieces[0].dtype)
    is_covered = torch.zeros(spec.shape[dim], dtype=torch.bool)
    for tp_rank, piece in enumerate(pieces):
        position = 0
        for start, stop in spec.rank_ranges(tp_rank=tp_rank, tp_size=len(pieces)):
            run = piece.narrow(dim, position, stop - start)
            target = whole.narrow(dim, start, stop - start)
            if is_covered[start] and not same_bits(run, target):
                raise ValueError("ranks hold different copies")
            target.copy_(run)
            is_covered[start:stop] = True
            position += stop - start
    if not is_covered.all():
        raise ValueError("the ranks do not cover it")
    return whole


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of shape, type and bits, so that NaN equals itself and -0 differs from 0."""
    import torch

    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
