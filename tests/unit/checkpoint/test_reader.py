"""safetensors files, whole and damaged in every way that the format allows to notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from pelton.checkpoint.header import read_header
from pelton.checkpoint.reader import INDEX_NAME, CheckpointReader, TensorFile
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.writer import ALIGN_BYTES, PAD_PREFIX, TensorFileWriter, TensorPlan
from pelton.errors import CheckpointError


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {"single": make_checkpoint("LlamaForCausalLM", folder, num_hidden_layers=1),
            "sharded": make_checkpoint("LlamaForCausalLM", folder, num_hidden_layers=1, sharded=True)}


@pytest.fixture
def single(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["single"], tmp_path / "single"))


@pytest.fixture
def sharded(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["sharded"], tmp_path / "sharded"))


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Changes a file's header and keeps its data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_single_and_sharded_hold_the_same(single: Path, sharded: Path) -> None:
    one, many = CheckpointReader(single), CheckpointReader(sharded)
    assert len(many.files) > 1
    assert set(one.names) == set(many.names)
    expected = load_file(single / "model.safetensors")
    for name in one.names:
        assert torch.equal(one.read(name), expected[name])
        assert torch.equal(many.read(name), expected[name])
        assert one.entry(name).shape == tuple(expected[name].shape)


@pytest.mark.parametrize(("damage", "text"), [
    (lambda data: data[:-100], "truncated: .* fetch the file again"),
    (lambda data: data + b"\0\0", "2 bytes after the last tensor"),
    (lambda data: data[:4], "truncated, or no safetensors file"),
    (lambda data: b"", "truncated, or no safetensors file"),
    (lambda data: b"PK\3\4" * 1000, "truncated, or no safetensors file"),
    (lambda data: (2**40).to_bytes(8, "little") + data[8:], "header should take 1,099,511,627,776 bytes"),
    (lambda data: data[:8] + b"\xff" + data[9:], "header is not valid JSON"),
    (lambda data: (4).to_bytes(8, "little") + b"[1] ", "header is not a JSON object"),
])
def test_damaged_file(single: Path, damage: Callable[[bytes], bytes], text: str) -> None:
    file = single / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=text) as caught:
        CheckpointReader(single)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


NORM = "model.norm.weight"


@pytest.mark.parametrize(("change", "text"), [
    (lambda h: h[NORM].update(data_offsets=[0, 256]), "overlaps the one before"),
    (lambda h: h[NORM].update(data_offsets=[256, 0]), f"{NORM}.* cannot take"),
    (lambda h: h[NORM].update(data_offsets=[-256, 0]), f"{NORM}.* lacks a usable"),
    (lambda h: h[NORM].update(shape=[65]), f"{NORM}.* cannot take 256 bytes"),
    (lambda h: h[NORM].update(shape=[-64]), f"{NORM}.* lacks a usable"),
    (lambda h: h[NORM].update(dtype="F4"), f"{NORM}.*'F4', which is not supported"),
    (lambda h: h[NORM].pop("shape"), f"{NORM}.* lacks a usable"),
    (lambda h: h.update({NORM: 5}), f"{NORM}.* lacks a usable"),
    (lambda h: h.pop(NORM), "256 bytes (before tensor .* belong to no tensor|after the last tensor)"),
])
def test_header_that_contradicts_itself(single: Path, change: Callable[[dict], None], text: str) -> None:
    rewrite(single / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=text):
        CheckpointReader(single)


def test_missing_shard(sharded: Path) -> None:
    next(sharded.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-0000\d.safetensors: missing; .*index.json names it"):
        CheckpointReader(sharded)


@pytest.mark.parametrize(("index", "text"), [
    ({}, "weight_map must be an object"),
    ({"weight_map": {NORM: "../model.safetensors"}}, "no safetensors file of this folder"),
    ({"weight_map": {NORM: "/etc/passwd"}}, "no safetensors file of this folder"),
    ({"weight_map": {NORM: "pytorch_model.bin"}}, "no safetensors file of this folder"),
    ({"weight_map": {NORM: 3}}, "no safetensors file of this folder"),
])
def test_unusable_index(sharded: Path, index: dict, text: str) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=text):
        CheckpointReader(sharded)


def test_index_names_a_tensor_that_is_not_there(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["model.layers.7.extra"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'model.layers.7.extra' is missing; .*index.json says"):
        CheckpointReader(sharded)


def test_no_weights_or_only_pickles(single: Path) -> None:
    (single / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights are missing"):
        CheckpointReader(single)
    (single / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only pickle files .*save_pretrained"):
        CheckpointReader(single)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(("change", "text"), [
    (lambda t: t.pop(NORM), f"{NORM}' is missing; LlamaForCausalLM"),
    (lambda t: [t.pop(n) for n in list(t) if "layers.0.mlp" in n], r"mlp.down_proj.weight' is missing \(and 2 more\)"),
    (lambda t: t.update(extra=torch.ones(1)), "'extra' is unexpected"),
    (lambda t: t.update({NORM: torch.ones(63)}), rf"{NORM}' has shape \[63\], config.json asks for \[64\]"),
    (lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(64, 64)}),
     r"k_proj.weight' has shape \[64, 64\], config.json asks for \[32, 64\]"),
    (lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)}), f"{NORM}' is stored as I8, supported are"),
])
def test_tensors_that_do_not_fit_the_model(single: Path, change: Callable, text: str) -> None:
    change_tensors(single, change)
    with pytest.raises(CheckpointError, match=text):
        CheckpointSource(single)


def test_buffers_of_older_exports_are_ignored(single: Path) -> None:
    change_tensors(single, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    CheckpointSource(single)


def test_stored_head_beside_a_tied_embedding_is_ignored(tmp_path: Path) -> None:
    path = make_checkpoint("Qwen2ForCausalLM", tmp_path, num_hidden_layers=1)
    change_tensors(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    CheckpointSource(path)


def test_type_of_a_config_that_names_none(tmp_path: Path) -> None:
    path = make_checkpoint("LlamaForCausalLM", tmp_path, dtype="bfloat16", num_hidden_layers=1)
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    assert CheckpointSource(path).dtype == "bfloat16"


def test_writer_aligns_and_stays_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    tensors = {"z": torch.randn(3, 5), "empty": torch.empty(0, 4), "a": torch.randn(7).bfloat16(),
               "m": torch.randn(64, 2).half().t(), "scalar": torch.tensor(1.5)}
    plans = [TensorPlan(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
             for name, tensor in tensors.items()]
    writer = TensorFileWriter(file, plans)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    header = read_header(file)
    assert [name for name in header if not name.startswith(PAD_PREFIX)] == list(tensors)
    assert all(entry.start % ALIGN_BYTES == 0 for name, entry in header.items() if not name.startswith(PAD_PREFIX))
    loaded, own = load_file(file), TensorFile(file)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(own.read(name), tensor)
        assert own.read(name).data_ptr() % ALIGN_BYTES == 0 or tensor.numel() == 0
