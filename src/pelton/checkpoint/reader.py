"""Reads a Hugging Face checkpoint's tensors: one safetensors file or several with an index, mapped, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelton.checkpoint.header import TensorEntry, read_header
from pelton.checkpoint.hf_config import read_json_object
from pelton.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")


class TensorFile:
    """One safetensors file, mapped when its first tensor is read.

    Raises:
        CheckpointError: the file cannot be read, is truncated or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, TensorEntry] = read_header(path)
        self._handle: Any = None

    def read(self, name: str) -> Tensor:
        """A tensor whose memory is the mapped file: not to be written to.

        Raises:
            CheckpointError: the file cannot be mapped, or changed since its header was read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if self._handle is None:
                self._handle = safe_open(str(self.path), framework="pt", device="cpu")
            tensor = self._handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} cannot be read ({error})") from None
        if tuple(tensor.shape) != self.entries[name].shape:
            raise CheckpointError(f"{self.path}: changed while it was being read; start again")
        return tensor


class CheckpointReader:
    """The tensors of a checkpoint directory under their Hugging Face names.

    Headers are read and checked at once; contents are mapped when a tensor is read, and nothing is kept: the memory of
    a tensor is its pages in the file until somebody changes or copies it.

    Raises:
        CheckpointError: no safetensors, a missing or damaged file, or an index that contradicts the files.
    """

    def __init__(self, model_dir: Path):
        self.model_dir = model_dir
        self.files = weight_files(model_dir)
        self._where: dict[str, TensorFile] = {}
        for path in self.files:
            file = TensorFile(path)
            for name in file.entries:
                if name in self._where:
                    raise CheckpointError(f"{path}: tensor {name!r} also stands in {self._where[name].path.name}")
                self._where[name] = file
        self._check_index()

    @property
    def names(self) -> list[str]:
        return list(self._where)

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and place of a tensor, by its name in the checkpoint."""
        return self._where[name].entries[name]

    def file_of(self, name: str) -> Path:
        return self._where[name].path

    def read(self, name: str) -> Tensor:
        """A mapped tensor, see `TensorFile.read`."""
        return self._where[name].read(name)

    def _check_index(self) -> None:
        if self.files[0].name == SINGLE_NAME:
            return
        for name, file_name in _weight_map(self.model_dir / INDEX_NAME).items():
            if name not in self._where:
                raise CheckpointError(f"{self.model_dir / file_name}: tensor {name!r} is missing; {INDEX_NAME} says it "
                                      "stands there")


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint: model.safetensors, else those its index names.

    Raises:
        CheckpointError: there are none, or one is missing; the text says what to do.
    """
    single, index = model_dir / SINGLE_NAME, model_dir / INDEX_NAME
    if single.exists():
        return [single]
    if not index.exists():
        raise CheckpointError(f"{model_dir}: {missing_weights(p.name for p in model_dir.iterdir())}")
    files = sorted(set(_weight_map(index).values()))
    for name in files:
        if not (model_dir / name).exists():
            raise CheckpointError(f"{model_dir / name}: missing; {INDEX_NAME} names it. Fetch the file, or copy the "
                                  "whole checkpoint again")
    return [model_dir / name for name in files]


def missing_weights(names: Any) -> str:
    """What to say about a folder or repository with these files when it has no weights that can be read."""
    names = sorted(names)
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    wanted = f"no {SINGLE_NAME} and no {INDEX_NAME}"
    if pickles:
        return (f"{wanted}, only pickle files ({pickles[0]}), which can run code when read and are not loaded; save it "
                "as safetensors with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)")
    if others:
        return f"{wanted}, only {', '.join(others[:3])}; the weights must be under Hugging Face's file names"
    return f"{wanted}; the weights are missing"


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name of an index; file names that lead out of the folder are refused."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object that gives each tensor's file")
    for name, file_name in weight_map.items():
        is_name = isinstance(file_name, str) and Path(file_name).name == file_name
        if not is_name or not file_name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: weight_map gives {file_name!r} for {name!r}, which is no safetensors file "
                                  "of this folder")
    return weight_map
