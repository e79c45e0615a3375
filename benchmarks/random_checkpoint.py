"""Writes a Hugging Face checkpoint of a public shape with random bf16 weights, for runs that need files: build, serve.

    python benchmarks/random_checkpoint.py FOLDER [--shape llama-3.1-8b] [--device cuda] [--layers N]
    pelton build FOLDER -o ENGINE --device cuda && pelton serve ENGINE

Shapes are the folders of benchmarks/shapes. Values are those of `runner/random_weights.py`: normal, different in every
tensor, so that activations stay finite. An 8B takes 16 GB of disk, in shards of about 4 GB that threads write
together. The tokenizer is pelton-tiny's, whose ids are a subset of the model's, so that text can be served too; the
end-of-sequence ids are left out of the config, so that every answer has the length that was asked for. A folder that is
there already is left as it is. Prints one JSON line: folder, bytes, seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from common import print_json

from pelton.checkpoint.hf_config import load_model_config
from pelton.checkpoint.hub import resolve_model
from pelton.config import ModelConfig
from pelton.models.registry import get_architecture
from pelton.models.weights import WeightSpec
from pelton.runner.random_weights import make_random_weights

SHAPES = Path(__file__).parent / "shapes"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
NUM_SHARDS = 4


def write_checkpoint(folder: Path, shape: str, *, device: str, num_layers: int | None = None) -> int:
    """Writes the checkpoint beside its place and renames it. Returns the bytes of its weights."""
    content = json.loads((SHAPES / shape / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id"):
        content.pop(name, None)
    if num_layers is not None:
        content["num_hidden_layers"] = num_layers
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(content, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        if (resolve_model("pelton-tiny") / name).exists():
            shutil.copy(resolve_model("pelton-tiny") / name, partial / name)
    config = load_model_config(partial)
    tensors = dict(source_tensors(config, make_random_weights(config, torch.bfloat16, device)))
    shards = cut(tensors)
    names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    with ThreadPoolExecutor(len(shards)) as pool:
        list(pool.map(lambda name, shard: write_shard(partial / name, shard), names, shards))
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (partial / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map}))
    partial.rename(folder)
    return num_bytes


def source_tensors(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors under their Hugging Face names: what the decoder wants fused, cut into its parts."""
    for spec in get_architecture(config.architecture).weights(config):
        yield from zip(spec.sources, split(spec, weights[spec.name]), strict=True)


def split(spec: WeightSpec, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensor.split(spec.parts) if len(spec.sources) == len(spec.parts) else (tensor,)


def cut(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """NUM_SHARDS runs of tensors of about the same size."""
    most = sum(tensor.nbytes for tensor in tensors.values()) / NUM_SHARDS
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if sum(other.nbytes for other in shards[-1].values()) >= most:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file: 8 bytes of length, a JSON header, the data."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            data = memoryview(tensor.contiguous().cpu().view(torch.uint8).numpy()).cast("B")
            while data:  # one call writes 2 GiB at most
                data = data[file.write(data):]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=sorted(path.name for path in SHAPES.iterdir()))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    args = parser.parse_args()
    began, num_bytes = time.perf_counter(), 0
    if not args.folder.exists():
        num_bytes = write_checkpoint(args.folder, args.shape, device=args.device, num_layers=args.layers)
    print_json({"benchmark": "random_checkpoint", "folder": str(args.folder), "bytes": num_bytes,
                "seconds": round(time.perf_counter() - began, 2)})


if __name__ == "__main__":
    main()
