"""A Hugging Face checkpoint as the decoder wants it: canonical names, fused, cast, one tensor at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pelton.checkpoint.header import DTYPE_NAMES
from pelton.checkpoint.hf_config import load_hf_config, load_model_config
from pelton.checkpoint.reader import CheckpointReader
from pelton.config import Dtype, ModelConfig
from pelton.errors import CheckpointError
from pelton.models.registry import get_architecture
from pelton.models.weights import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointSource:
    """Reads canonical tensors out of a Hugging Face checkpoint, after checking that it holds them all.

    Args:
        model_dir: config.json and safetensors.
        dtype: type to cast to; "auto" keeps what config.json says, or what is stored when it says nothing.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of an unsupported model, or a tensor is missing, unexpected
            or of the wrong shape or type.
    """

    def __init__(self, model_dir: Path, dtype: Dtype | Literal["auto"] = "auto"):
        self.config: ModelConfig = load_model_config(model_dir)
        self._reader = CheckpointReader(model_dir)
        specs = get_architecture(self.config.architecture).weights(self.config)
        _check_tensors(self._reader, specs, self.config)
        hf = load_hf_config(model_dir)
        if hf.get("dtype") is None and hf.get("torch_dtype") is None:
            stored = DTYPE_NAMES[self._reader.entry(specs[0].sources[0]).code]
            self.config = dataclasses.replace(self.config, dtype=stored)
        self.dtype: Dtype = self.config.dtype if dtype == "auto" else dtype

    @property
    def files(self) -> list[Path]:
        return self._reader.files

    def read(self, spec: WeightSpec) -> Tensor:
        """One canonical tensor, whole; a view of the mapped file when it needs neither fusing nor casting.

        Raises:
            CheckpointError: the file cannot be read, or a value does not fit into float16.
        """
        import torch

        target = getattr(torch, self.dtype)
        runs = []
        for name in spec.sources:
            stored = self._reader.read(name)
            runs.append(cast := stored.to(target))
            if target == torch.float16 and stored.dtype != target and _overflowed(stored, cast):
                raise CheckpointError(f"{self._reader.file_of(name)}: tensor {name!r} has values beyond float16's "
                                      "65,504; use --dtype bfloat16 or float32")
        return runs[0] if len(runs) == 1 else torch.cat(runs)


def _overflowed(stored: Tensor, cast: Tensor) -> bool:
    return bool((cast.isinf() & stored.isfinite()).any())


def _check_tensors(reader: CheckpointReader, specs: list[WeightSpec], config: ModelConfig) -> None:
    wanted = {name for spec in specs for name in spec.sources}
    missing = sorted(wanted - set(reader.names))
    if missing:
        raise CheckpointError(f"{reader.model_dir}: tensor {missing[0]!r} is missing{_and_more(missing)}; "
                              f"{config.architecture} with this config.json needs it")
    is_ignored = get_architecture(config.architecture).is_ignored
    unexpected = sorted(name for name in reader.names if name not in wanted and not is_ignored(name, config))
    if unexpected:
        raise CheckpointError(f"{reader.file_of(unexpected[0])}: tensor {unexpected[0]!r} is unexpected"
                              f"{_and_more(unexpected)}; {config.architecture} with this config.json has no such part")
    for spec in specs:
        _check_shapes(reader, spec)


def _check_shapes(reader: CheckpointReader, spec: WeightSpec) -> None:
    # Checkpoints store the parts of a fused tensor one by one (Llama's q, k, v) or as one (Phi-3's qkv_proj).
    rows = spec.parts if len(spec.sources) == len(spec.parts) else spec.shape[:1]
    assert len(rows) == len(spec.sources), spec
    for name, num_rows in zip(spec.sources, rows, strict=True):
        entry, shape = reader.entry(name), (num_rows, *spec.shape[1:])
        if entry.shape != shape:
            raise CheckpointError(f"{reader.file_of(name)}: tensor {name!r} has shape {list(entry.shape)}, config.json "
                                  f"asks for {list(shape)}")
        if entry.code not in DTYPE_NAMES:
            raise CheckpointError(f"{reader.file_of(name)}: tensor {name!r} is stored as {entry.code}, supported are "
                                  f"{', '.join(DTYPE_NAMES)}; use the unquantized checkpoint")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
