"""The number of KV blocks, from what is free; refusals that name their mend."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ModelConfig, ParallelConfig
from pelton.errors import CapacityError, ConfigError
from pelton.hashing import FileEntry
from pelton.host import Gpu
from pelton.kernels.linear.workspace import Workspace, workspace_bytes
from pelton.kernels.sampling import triton as sampler
from pelton.ledger import LINEAR_WORKSPACE_BYTES, sampling_scratch_bytes
from pelton.manifest import Limits, Manifest
from pelton.models.decoder import resident_bytes
from pelton.physics import GIB, MIB
from pelton.runner import memory
from pelton.runner.limits import narrow
from pelton.runner.memory import available_bytes, plan_memory, refuse_too_large

MODEL = ModelConfig(architecture="LlamaForCausalLM", vocab_size=1000, hidden_size=256, intermediate_size=512,
                    num_layers=8, num_heads=8, num_kv_heads=4, head_dim=32, max_position_embeddings=4096)
LIMITS = Limits(max_batch_size=16, max_seq_len=4096, max_input_len=4095, max_num_tokens=1024, tokens_per_block=64)
BLOCK_BYTES = 64 * 2 * 8 * 4 * 32 * 2
CPU = torch.device("cpu")


def plan(monkeypatch, free_bytes, kv=None, limits=LIMITS, linear_bytes=0, **changes):
    monkeypatch.setattr(memory, "available_bytes", lambda device: (64 * GIB, free_bytes))
    monkeypatch.setattr(memory, "_linear_workspace_bytes", lambda device: linear_bytes)
    options = {"weights_bytes": 10 * MIB, "dtype": "bfloat16", "kv_dtype": "bfloat16", "device": CPU}
    return plan_memory(MODEL, limits, kv or KvCacheConfig(), **options | changes)


def test_no_more_than_the_batch_can_use(monkeypatch):
    ledger = plan(monkeypatch, 32 * GIB)
    assert ledger.num_blocks == 16 * 64
    assert ledger.block_bytes == BLOCK_BYTES
    assert ledger.free_bytes > 0


def test_no_more_than_the_cap_on_a_cpu(monkeypatch):
    limits = dataclasses.replace(LIMITS, max_batch_size=256)
    assert plan(monkeypatch, 32 * GIB, limits=limits).num_blocks == 4 * GIB // BLOCK_BYTES
    big = plan(monkeypatch, 32 * GIB, limits=limits, kv_dtype="float32")
    assert big.kv_blocks_bytes == 4 * GIB


def test_one_sequence_may_exceed_the_cap(monkeypatch):
    monkeypatch.setattr(memory, "CPU_CACHE_BYTES", 10 * BLOCK_BYTES)
    assert plan(monkeypatch, 32 * GIB).num_blocks == 64


def test_share_of_what_is_left(monkeypatch):
    kv = KvCacheConfig(free_memory_fraction=0.5)
    ledger = plan(monkeypatch, 500 * MIB, kv)
    left = 500 * MIB - (ledger.weights_bytes + ledger.activations_bytes + ledger.sampling_state_bytes)
    assert ledger.num_blocks == left // 2 // BLOCK_BYTES
    assert 64 < ledger.num_blocks < 16 * 64


def test_a_gpu_takes_its_share_without_a_cap(monkeypatch):
    ledger = plan(monkeypatch, 40 * GIB, device=torch.device("cuda"))
    assert ledger.kv_blocks_bytes > 35 * GIB


def test_max_blocks_overrides(monkeypatch):
    assert plan(monkeypatch, 32 * GIB, KvCacheConfig(max_blocks=5000)).num_blocks == 5000
    assert plan(monkeypatch, 32 * GIB, KvCacheConfig(max_blocks=3)).num_blocks == 3


def test_too_many_blocks_are_refused(monkeypatch):
    with pytest.raises(CapacityError, match=r"max_blocks: 50000 blocks take 12\.21 GiB.*lower max_blocks"):
        plan(monkeypatch, 4 * GIB, KvCacheConfig(max_blocks=50000))


def test_too_little_for_one_sequence_is_refused(monkeypatch):
    with pytest.raises(CapacityError, match=r"one sequence of 4096 tokens needs 64; lower max_seq_len"):
        plan(monkeypatch, 25 * MIB)
    with pytest.raises(CapacityError, match="leaves 0 KV blocks"):
        plan(monkeypatch, 5 * MIB)


def test_weights_count_in_the_layouts_of_their_kernels(monkeypatch):
    assert plan(monkeypatch, 32 * GIB).weights_bytes == resident_bytes(MODEL, torch.bfloat16, implementation="cpu")
    gpu = plan(monkeypatch, 32 * GIB, device=torch.device("cuda"))
    assert gpu.weights_bytes == 10 * MIB


def test_a_gpus_ledger_holds_the_workspace_of_its_products(monkeypatch):
    """The prediction covers the largest GPU of the table of hardware that was tried; a runner counts exactly."""
    assert workspace_bytes(132) <= LINEAR_WORKSPACE_BYTES
    made = Workspace(132, torch.empty(132 * 8, 128 * 128, device="meta"), torch.empty(132 * 8, 128, device="meta"),
                     torch.empty(1 << 14, dtype=torch.int32, device="meta"))
    assert workspace_bytes(132) == made.num_bytes
    small, large = (plan(monkeypatch, 32 * GIB, device=torch.device("cuda"), linear_bytes=size)
                    for size in (0, workspace_bytes(132)))
    assert large.workspace_bytes - small.workspace_bytes == workspace_bytes(132)


@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 320), (1024, 152_064), (256, 128_256), (64, 262_144)])
def test_a_gpus_ledger_holds_the_scratch_of_sampling(monkeypatch, num_rows, vocab_size):
    """Exactly what the sampler asks for, its kernels left out."""
    taken = []

    def empty(*args, inner=torch.empty, **options):
        taken.append(inner(*args, **options))
        return taken[-1]

    logits = torch.zeros(num_rows, vocab_size, device="meta")
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(sampler, "launch", lambda *args, **options: None)
    rows = sampler.DeviceRows(**dict.fromkeys(("slots", "positions", "params", "seeds", "last_tokens", "counts")))
    sampler.sample(logits, rows, truncates=True)
    assert sum(tensor.nbytes for tensor in taken) == sampling_scratch_bytes(num_rows, vocab_size)


LLAMA_70B = ModelConfig(architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=8192, intermediate_size=28672,
                        num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128, max_position_embeddings=131072,
                        dtype="bfloat16")


def large_manifest(**limits) -> Manifest:
    return Manifest(
        pelton_version="0", created_at="", source="org/model", options=BuildConfig(), model=LLAMA_70B,
        parallel=ParallelConfig(), limits=dataclasses.replace(LIMITS, max_seq_len=8192, max_input_len=8191, **limits),
        dtype="bfloat16", kv_cache_dtype="bfloat16", gpu="sm_90", is_tuned=False,
        files={"weights-0.safetensors": FileEntry(size_bytes=141_107_412_992, chunks=())})


def gpu_of(free_gib: float) -> Gpu:
    return Gpu(name="NVIDIA H200", architecture="sm_90", memory_bytes=140 * GIB, free_bytes=int(free_gib * GIB),
               driver="580")


def test_a_model_too_large_is_refused_with_what_would_fit():
    with pytest.raises(CapacityError, match=r"weights 131\.42, activations .* workspace .* KV blocks 0\.00") as caught:
        refuse_too_large(large_manifest(), ExecutorConfig(), gpu_of(120))
    text = str(caught.value)
    assert "what would fit, each alone: weights in fp8 (67.69 GiB), tp_size 2 (2 GPUs)" in text
    refuse_too_large(large_manifest(), ExecutorConfig(), gpu_of(139.5))


def test_a_batch_too_large_is_refused_with_one_that_would_fit():
    manifest = large_manifest(max_batch_size=4096, max_num_tokens=8192)
    with pytest.raises(CapacityError, match=r"what would fit, each alone: max_batch_size 64, "):
        refuse_too_large(manifest, ExecutorConfig(), gpu_of(138.5))
    refuse_too_large(manifest, ExecutorConfig(max_batch_size=64), gpu_of(138.5))
    with pytest.raises(ConfigError, match="max_batch_size must be at most 4096"):
        refuse_too_large(manifest, ExecutorConfig(max_batch_size=5000), gpu_of(139))


def test_refusing_takes_no_torch():
    code = ("import sys\n"
            "from pelton.runner.memory import refuse_too_large\n"
            "assert 'torch' not in sys.modules and 'triton' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_available_memory_of_this_machine():
    total, available = available_bytes(CPU)
    assert 0 < available <= total


def test_control_group_limits_what_is_available(monkeypatch):
    texts = {"/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n",
             "/sys/fs/cgroup/memory.max": f"{2 * GIB}\n", "/sys/fs/cgroup/memory.current": f"{GIB}",
             "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {256 * MIB}\nactive_file 7\n"}
    monkeypatch.setattr(memory, "read_text", lambda path: texts.get(str(path), ""))
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2 * GIB)
    assert available_bytes(CPU) == (2 * GIB, GIB + 256 * MIB)
    texts["/sys/fs/cgroup/memory.max"] = "max"
    assert available_bytes(CPU) == (2 * GIB, 2 * GIB)


def test_configuration_narrows_the_builds_limits():
    narrowed = narrow(LIMITS, ExecutorConfig(max_batch_size=4, max_num_tokens=512))
    assert (narrowed.max_batch_size, narrowed.max_num_tokens, narrowed.max_seq_len) == (4, 512, 4096)
    assert narrow(LIMITS, ExecutorConfig()) == LIMITS


@pytest.mark.parametrize(("config", "message"), [
    (ExecutorConfig(max_batch_size=17), "max_batch_size must be at most 16.*--max-batch-size 17"),
    (ExecutorConfig(max_num_tokens=4096), "max_num_tokens must be at most 1024"),
    (ExecutorConfig(kv_cache_config=KvCacheConfig(tokens_per_block=16)), "tokens_per_block must be 64.*"),
])
def test_configuration_cannot_widen_them(config, message):
    with pytest.raises(ConfigError, match=message):
        narrow(LIMITS, config)


def test_threads_follow_cores_and_quota(monkeypatch):
    from pelton.runner import load

    monkeypatch.setattr(load, "count_cores", lambda cpuinfo, num_available: 8)
    for quota, expected in (("max 100000", 8), ("150000 100000", 2), ("", 8), ("10000 100000", 1)):
        monkeypatch.setattr(load, "read_text", lambda path, quota=quota: quota if "cpu.max" in path else "")
        assert load.default_num_threads() == expected
