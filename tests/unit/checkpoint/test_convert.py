"""convert: every architecture, cut every way, is the source again when put together; nothing half-written stays."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, make_checkpoint
from safetensors.torch import load_file, save_file

from pelton.checkpoint import output
from pelton.checkpoint.convert import ConvertOptions, convert, run_convert
from pelton.checkpoint.pelton_checkpoint import rank_name, read_pelton_checkpoint, verify_pelton_checkpoint
from pelton.checkpoint.ranks import check_rank_files
from pelton.checkpoint.shard import assemble, cut, stage_weights
from pelton.checkpoint.source import CheckpointSource
from pelton.checkpoint.writer import PAD_PREFIX, TensorFileWriter
from pelton.config import ParallelConfig
from pelton.errors import CapacityError, CheckpointError, ConfigError
from pelton.models.registry import get_architecture
from pelton.models.weights import WeightSpec, stage_layers


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(name, folder, sharded=index % 2 == 0) for index, name in enumerate(ARCHITECTURES)}


@pytest.fixture(scope="module")
def llama(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["LlamaForCausalLM"]


def load_rank(path: Path, rank: int) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path / rank_name(rank)).items()
            if not name.startswith(PAD_PREFIX)}


def hugging_face(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("pp_size", [1, 2, 3])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_put_together_are_the_source(checkpoints: dict[str, Path], tmp_path: Path, architecture: str,
                                           tp_size: int, pp_size: int) -> None:
    source, out = checkpoints[architecture], tmp_path / "out"
    convert(source, out, tp_size=tp_size, pp_size=pp_size)
    config = read_pelton_checkpoint(out).model
    expected = hugging_face(source)
    held: dict[str, int] = {}
    for pp_rank in range(pp_size):
        ranks = [load_rank(out, pp_rank * tp_size + tp_rank) for tp_rank in range(tp_size)]
        specs = stage_weights(config, pp_rank=pp_rank, pp_size=pp_size)
        assert all(set(rank) == {spec.name for spec in specs} for rank in ranks)
        for spec in specs:
            held[spec.name] = held.get(spec.name, 0) + 1
            whole = torch.cat([expected[name] for name in spec.sources])
            assert torch.equal(assemble([rank[spec.name] for rank in ranks], spec), whole)
    every = {spec.name for spec in get_architecture(architecture).weights(config)}
    twice = {"embed.weight"} if config.tie_word_embeddings and pp_size > 1 else set()
    assert held == {name: 2 if name in twice else 1 for name in every}


def test_each_rank_holds_its_own_heads(llama: Path, tmp_path: Path) -> None:
    """4 query heads over 2 key/value heads of 16, on 4 ranks: one query head each, key/value heads shared by two."""
    convert(llama, tmp_path / "out", tp_size=4, pp_size=2)
    hf = hugging_face(llama)
    for rank in range(8):
        tp_rank, layer = rank % 4, 3 if rank >= 4 else 0
        attention = f"model.layers.{layer}.self_attn"
        part = load_rank(tmp_path / "out", rank)
        q, kv = slice(tp_rank * 16, tp_rank * 16 + 16), slice(tp_rank // 2 * 16, tp_rank // 2 * 16 + 16)
        rows = [hf[f"{attention}.q_proj.weight"][q], hf[f"{attention}.k_proj.weight"][kv],
                hf[f"{attention}.v_proj.weight"][kv]]
        assert torch.equal(part[f"layers.{layer}.qkv.weight"], torch.cat(rows))
        assert torch.equal(part[f"layers.{layer}.o.weight"], hf[f"{attention}.o_proj.weight"][:, q])
        mlp = slice(tp_rank * 24, tp_rank * 24 + 24)
        gate_up = [hf[f"model.layers.{layer}.mlp.{name}.weight"][mlp] for name in ("gate_proj", "up_proj")]
        assert torch.equal(part[f"layers.{layer}.gate_up.weight"], torch.cat(gate_up))
        assert ("embed.weight" in part) == (rank < 4)
        assert ("head.weight" in part) == ("norm.weight" in part) == (rank >= 4)
        assert [f"layers.{n}.attn_norm.weight" in part for n in range(4)] == [rank < 4] * 2 + [rank >= 4] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast(llama: Path, tmp_path: Path, dtype: str) -> None:
    convert(llama, tmp_path / "out", dtype=dtype, tp_size=2)
    hf = hugging_face(llama)
    both = [load_rank(tmp_path / "out", rank)["head.weight"] for rank in range(2)]
    assert torch.equal(torch.cat(both), hf["lm_head.weight"].to(getattr(torch, dtype)))
    assert read_pelton_checkpoint(tmp_path / "out").dtype == dtype


def test_value_beyond_float16_is_refused(llama: Path, tmp_path: Path) -> None:
    path = make_checkpoint("LlamaForCausalLM", tmp_path, num_hidden_layers=1)
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, path / "model.safetensors")
    convert(path, tmp_path / "wide", dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"model.norm.weight' has values beyond float16's"):
        convert(path, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("sizes", "text"), [
    ({"tp_size": 3}, r"tp_size must divide num_heads \(4\), got 3"),
    ({"tp_size": 8}, r"tp_size must divide num_heads \(4\), got 8"),
    ({"pp_size": 5}, r"pp_size must be at most the number of layers \(4\), got 5"),
    ({"tp_size": 0}, "tp_size must be at least 1"),
])
def test_split_that_does_not_fit(llama: Path, tmp_path: Path, sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        convert(llama, tmp_path / "out", **sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("overrides", "text"), [
    ({"vocab_size": 321}, r"tp_size must divide vocab_size \(321\)"),
    ({"intermediate_size": 98}, r"tp_size must divide intermediate_size \(98\)"),
    ({"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 6}, r"must divide num_kv_heads \(6\) or be"),
])
def test_shape_that_does_not_split(tmp_path: Path, overrides: dict[str, int], text: str) -> None:
    path = make_checkpoint("LlamaForCausalLM", tmp_path, num_hidden_layers=1, **overrides)
    with pytest.raises(ConfigError, match=text):
        convert(path, tmp_path / "out", tp_size=4)


def test_written_shards_are_compared_with_the_source(llama: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A single wrong bit on the way to the disk stops the conversion."""
    write = TensorFileWriter.write

    def flip(self: TensorFileWriter, name: str, tensor: torch.Tensor) -> None:
        if name == "layers.2.qkv.weight":
            tensor = tensor.clone()
            tensor.view(torch.int32)[0, 0] ^= 1
        write(self, name, tensor)

    monkeypatch.setattr(TensorFileWriter, "write", flip)
    with pytest.raises(CheckpointError, match=r"'layers.2.qkv.weight', written just now and read back, is wrong"):
        convert(llama, tmp_path / "out", tp_size=2, pp_size=2)
    assert list(tmp_path.iterdir()) == []


def test_repeated_heads_must_be_equal(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out", tp_size=4)
    paths = [tmp_path / "out" / rank_name(rank) for rank in range(4)]
    source, parallel = CheckpointSource(llama), ParallelConfig(tp_size=4)
    check_rank_files(source, parallel, paths, lambda _: None)
    tensors = load_file(paths[1])
    tensors["layers.0.qkv.weight"][-1] += 1  # a value head that rank 0 holds too
    save_file(tensors, paths[1])
    with pytest.raises(CheckpointError, match="ranks hold different copies"):
        check_rank_files(source, parallel, paths, lambda _: None)


def test_assemble_notices_a_gap() -> None:
    spec = WeightSpec(name="x", shape=(8, 2), sources=("x",), parts=(8,), shard="rows", layer=0)
    whole = torch.arange(16.0).view(8, 2)
    pieces = [cut(whole, spec, tp_rank=rank, tp_size=4) for rank in range(4)]
    assert torch.equal(assemble(pieces, spec), whole)
    columns = WeightSpec(name="x", shape=(2, 8), sources=("x",), parts=(2,), shard="columns", layer=0)
    assert torch.equal(assemble([cut(whole.t(), columns, tp_rank=r, tp_size=2) for r in range(2)], columns), whole.t())


def test_stages_are_consecutive_and_even() -> None:
    for num_layers in range(1, 9):
        for pp_size in range(1, num_layers + 1):
            stages = [stage_layers(num_layers, pp_rank=rank, pp_size=pp_size) for rank in range(pp_size)]
            assert [layer for stage in stages for layer in stage] == list(range(num_layers))
            assert max(map(len, stages)) - min(map(len, stages)) <= 1


def test_record_and_hashes(llama: Path, tmp_path: Path) -> None:
    written = convert(llama, tmp_path / "out", tp_size=2)
    read = read_pelton_checkpoint(tmp_path / "out")
    assert read == written
    assert read.source == str(llama)
    assert set(read.files) == {"rank-0000.safetensors", "rank-0001.safetensors", "tokenizer/tokenizer.json",
                               "tokenizer/tokenizer_config.json", "tokenizer/generation_config.json"}
    verify_pelton_checkpoint(tmp_path / "out", read)
    file = tmp_path / "out" / rank_name(1)
    content = bytearray(file.read_bytes())
    content[-70] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-0001.safetensors was altered .*pelton convert"):
        verify_pelton_checkpoint(tmp_path / "out", read)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-0001.safetensors is missing"):
        verify_pelton_checkpoint(tmp_path / "out", read)


@pytest.mark.parametrize(("content", "text"), [
    ("{", "not valid JSON"),
    ('{"format_version": 99, "source": "org/model"}', "format version 99, .*pelton convert org/model"),
    ('{"format_version": 2}', "missing"),
])
def test_damaged_record(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "pelton_checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=text):
        read_pelton_checkpoint(tmp_path)


def test_output_is_replaced_only_when_it_is_ours(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(llama, out)  # empty
    convert(llama, out, tp_size=2)  # an earlier output
    assert (out / rank_name(1)).exists()
    convert(llama, out)
    assert not (out / rank_name(1)).exists()
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(ConfigError, match=r"output: .*photos holds other files and no pelton_checkpoint.json"):
        convert(llama, foreign)
    with pytest.raises(ConfigError, match="exists and is not a directory"):
        convert(llama, foreign / "cat.jpg")
    assert (foreign / "cat.jpg").read_bytes() == b"meow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_failure_leaves_the_earlier_output(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first = convert(llama, out)
    num_written = 0

    def fill_disk(self: TensorFileWriter, name: str, tensor: torch.Tensor) -> None:
        nonlocal num_written
        num_written += 1
        if num_written > 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorFileWriter, "write", fill_disk)
    with pytest.raises(CapacityError, match=r"no space left for .*out"):
        convert(llama, out, dtype="bfloat16")
    assert read_pelton_checkpoint(out) == first
    verify_pelton_checkpoint(out, first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_disk_that_is_too_small_is_told_first(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CapacityError, match=r"has 0.00 GB free, 0.00 GB are needed"):
        convert(llama, tmp_path / "out")


def test_unwritable_places(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/out"), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"output: .* cannot be written"):
            convert(llama, place)
    with pytest.raises(ConfigError, match="is a mount point"):
        convert(llama, Path("/proc"))


def test_convert_reads_no_output_of_its_own(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out")
    with pytest.raises(ConfigError, match="is an output of Pelton already"):
        convert(tmp_path / "out", tmp_path / "again")


def test_command(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run_convert(ConvertOptions(model=str(llama), output=out, tp_size=2, json=True)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parallel"] == {"tp_size": 2, "pp_size": 1}
    assert summary["dtype"] == "float32"
    assert run_convert(ConvertOptions(model=str(llama), output=out)) == 0
    assert "LlamaForCausalLM, float32, 1 rank file(s)" in capsys.readouterr().out
