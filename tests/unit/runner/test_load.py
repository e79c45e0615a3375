"""From an engine directory to tokens: weights checked and mapped, refusals by name, the decoder's own greedy tokens."""

import dataclasses
import os
import threading

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, make_checkpoint

from pelton.build.write import build
from pelton.cache.pool import KvPool
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ParallelConfig
from pelton.errors import CapacityError, ConfigError, EngineError
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.manifest import read_manifest, weights_name, write_manifest
from pelton.models.decoder import Decoder
from pelton.models.registry import get_architecture
from pelton.runner import upload
from pelton.runner.load import load_engine, map_weights, reads_weights
from pelton.runner.runner import Runner, load_decoder_class
from pelton.runner.upload import WeightUpload
from pelton.types import Batch, SamplingParams, SlotInit

CPU = torch.device("cpu")
OPTIONS = BuildConfig(max_batch_size=4, max_seq_len=96, max_num_tokens=64, tokens_per_block=16)
CONFIG = ExecutorConfig(num_threads=1, device="cpu")
PROMPT = [7, 300, 12, 99, 150, 41]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def built(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("engines") / "engine"
    build(checkpoint, path, OPTIONS)
    return path


@pytest.fixture
def engine(checkpoint, tmp_path):
    """An engine of its own, to be damaged."""
    build(checkpoint, tmp_path / "engine", OPTIONS)
    return tmp_path / "engine"


def greedy_by_decoder(engine_dir, num_tokens):
    """The whole sequence prefilled anew for each token: no cache, no slots."""
    manifest = read_manifest(engine_dir)
    model = manifest.model
    decoder = load_decoder_class(model)(model, map_weights(engine_dir, manifest))
    tokens = list(PROMPT)
    for _ in range(num_tokens):
        pool = KvPool(8, model.num_layers, model.num_kv_heads, 16, model.head_dim, torch.float32)
        meta = AttentionMetadata.from_rows([0], [len(tokens)], [list(range(8))], num_decodes=0, tokens_per_block=16)
        hidden = decoder.forward(torch.tensor(tokens), torch.arange(len(tokens)), pool, meta)
        tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    return tokens[len(PROMPT):]


def test_engine_runs_from_its_directory(built):
    runner = Runner.from_engine(built, CONFIG)
    try:
        assert runner.limits.max_batch_size == 4
        assert runner.limits.vocab_size == 320
        assert runner.num_blocks == 4 * 6  # max_batch_size sequences of max_seq_len
        assert runner.eos_ids == (1,)
        new = [SlotInit(2, PROMPT, len(PROMPT), [5, 3], SamplingParams(temperature=0.0), 0, ())]
        steps = [runner.forward(Batch(0, [2], [0], [6], [True], 0, new, [], []))]
        runner.sample(steps[0], None)
        for i in range(19):
            steps.append(runner.forward(Batch(1 + i, [2], [6 + i], [1], [True], 1, [], [], [])))
            runner.sample(steps[-1], None)
        assert [step.result().token_ids[0] for step in steps] == greedy_by_decoder(built, 20)
    finally:
        runner.close()


def test_weights_are_mapped_whole_and_without_fillers(built):
    weights = map_weights(built, read_manifest(built))
    assert not [name for name in weights if name.startswith("_pad")]
    assert weights["layers.3.down.weight"].shape == (64, 96)
    name = weights_name(0)
    with open("/proc/self/maps") as maps:
        ranges = [line.split("-", 1) for line in maps if name in line]
    start = weights["embed.weight"].data_ptr()
    assert any(int(low, 16) <= start < int(rest.split()[0], 16) for low, rest in ranges)


@pytest.mark.parametrize("chunk_bytes", [1000, 2**16, 2**24])
def test_uploaded_weights_equal_mapped_ones(checkpoint, tmp_path, monkeypatch, chunk_bytes):
    """Tensors cut by chunks and several in one chunk, by several threads; a CPU stands in for the device."""
    for module in ("hashing", "runner.upload"):
        monkeypatch.setattr(f"pelton.{module}.CHUNK_BYTES", chunk_bytes)
    build(checkpoint, tmp_path / "engine", OPTIONS)
    manifest = read_manifest(tmp_path / "engine")
    uploaded = WeightUpload(tmp_path / "engine", manifest, weights_name(0), CPU, threads=3).wait()
    mapped = map_weights(tmp_path / "engine", manifest)
    assert uploaded.keys() == mapped.keys()
    for name, tensor in mapped.items():
        assert uploaded[name].shape == tensor.shape
        assert uploaded[name].equal(tensor), name


@pytest.mark.parametrize("damage", ["flip", "header", "truncate", "remove"])
def test_damaged_weights_are_not_uploaded(engine, damage):
    path = engine / weights_name(0)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        os.truncate(path, len(content) - 64)
    elif damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2 if damage == "flip" else 9] ^= 1
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"weights-0\.safetensors .*(altered|truncated|missing).*pelton build"):
        WeightUpload(engine, read_manifest(engine), weights_name(0), CPU).wait()


def test_tensors_are_there_before_their_values(engine, monkeypatch):
    may_begin = threading.Event()

    def drain(*args, inner=upload.drain_checked, **options):
        assert may_begin.wait(30)
        inner(*args, **options)

    monkeypatch.setattr(upload, "drain_checked", drain)
    manifest = read_manifest(engine)
    weights = WeightUpload(engine, manifest, weights_name(0), CPU)
    seen = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    may_begin.set()
    mapped = map_weights(engine, manifest)
    assert seen.keys() == mapped.keys()
    assert not any(tensor.any() for tensor in seen.values())
    for _ in range(2):
        assert all(mapped[name].equal(tensor) for name, tensor in weights.wait().items())
    assert weights.num_bytes == sum(tensor.nbytes for tensor in mapped.values())


def test_damage_found_late_is_told_as_often_as_it_is_asked_for(engine):
    path = engine / weights_name(0)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    weights = WeightUpload(engine, read_manifest(engine), weights_name(0), CPU)
    for _ in range(2):
        with pytest.raises(EngineError, match="altered"):
            weights.wait()


def tensors_in(thing, found):
    """All tensors that a model holds, by address."""
    if isinstance(thing, torch.Tensor):
        found.add(thing.data_ptr())
    elif isinstance(thing, list | tuple | dict):
        for item in thing.values() if isinstance(thing, dict) else thing:
            tensors_in(item, found)
    elif type(thing).__module__.startswith("pelton."):
        tensors_in(getattr(thing, "__dict__", {}), found)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_decoder_that_reads_no_weights_holds_those_it_was_given(architecture, tmp_path):
    """So that it can be made while they are still on their way."""
    config = load_model_config(make_checkpoint(architecture, tmp_path, dtype="bfloat16"))
    weights = {spec.name: torch.zeros(spec.shape, dtype=torch.bfloat16)
               for spec in get_architecture(config.architecture).weights(config)}
    addresses = {tensor.data_ptr() for tensor in weights.values()}
    held = tensors_in(Decoder(config, dict(weights), implementation="cuda"), set())
    assert (addresses <= held) != reads_weights(config, "bfloat16", torch.device("cuda"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_weights_are_refused(engine, damage):
    path = engine / weights_name(0)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        os.truncate(path, len(content) - 64)
    else:
        path.unlink()
    with pytest.raises(EngineError, match=r"weights-0\.safetensors .*(altered|truncated|missing).*pelton build"):
        load_engine(engine, CONFIG)


def test_other_gpu_architecture_is_refused(engine):
    write_manifest(engine, dataclasses.replace(read_manifest(engine), gpu="sm_70"))
    for device in ("auto", "cpu"):
        with pytest.raises(EngineError, match="built for a GPU of architecture sm_70"):
            load_engine(engine, ExecutorConfig(device=device))


def test_gpu_asked_for_where_there_is_none(built, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device: cuda was asked for.*pelton doctor"):
        load_engine(built, ExecutorConfig(device="cuda"))


def test_engine_of_several_ranks_is_refused(checkpoint, tmp_path):
    build(checkpoint, tmp_path / "engine", OPTIONS, parallel=ParallelConfig(tp_size=2))
    with pytest.raises(EngineError, match=r"split over 2 ranks.*pelton build MODEL -o [^|]*$"):
        load_engine(tmp_path / "engine", CONFIG)


def test_configuration_is_checked_before_weights_are_read(engine):
    (engine / weights_name(0)).write_bytes(b"")
    with pytest.raises(ConfigError, match="max_batch_size must be at most 4"):
        load_engine(engine, ExecutorConfig(max_batch_size=8, device="cpu"))


def test_capacity_is_checked_before_weights_are_read(built, monkeypatch):
    monkeypatch.setattr("pelton.runner.memory.available_bytes", lambda device: (2**40, 1000))
    monkeypatch.setattr("pelton.runner.load.map_weights", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(CapacityError, match="one sequence of 96 tokens"):
        load_engine(built, CONFIG)


def test_blocks_and_batch_as_configured(built):
    config = ExecutorConfig(max_batch_size=2, num_threads=1, kv_cache_config=KvCacheConfig(max_blocks=7))
    runner = Runner.from_engine(built, config)
    runner.close()
    assert (runner.limits.max_batch_size, runner.num_blocks, runner.limits.num_blocks) == (2, 7, 7)
