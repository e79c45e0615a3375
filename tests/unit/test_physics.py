"""Roofline formulas against counts made one by one, and against published and measured figures."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from pelton import host, physics
from pelton.config import ModelConfig
from pelton.errors import ConfigError
from pelton.models.registry import get_architecture
from pelton.physics import HARDWARE, Roofline, find_hardware

LLAMA_8B = ModelConfig(architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
                       num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, max_position_embeddings=131072)
QWEN_7B = ModelConfig(architecture="Qwen2ForCausalLM", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                      num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, max_position_embeddings=32768,
                      attention_bias=True)
GEMMA_LIKE = ModelConfig(architecture="Gemma2ForCausalLM", vocab_size=1000, hidden_size=64, intermediate_size=96,
                         num_layers=4, num_heads=8, num_kv_heads=4, head_dim=16, max_position_embeddings=512,
                         tie_word_embeddings=True, sandwich_norm=True, sliding_window=7,
                         layer_kinds=("sliding", "full", "sliding", "full"))


def on(name: str, model: ModelConfig = LLAMA_8B, **options: object) -> Roofline:
    return Roofline(model=model, hardware=find_hardware(name), **options)


# --- published and measured figures


@pytest.mark.parametrize(("model", "weights", "giga_bytes", "tokens_per_s"), [
    (LLAMA_8B, "auto", 15.0, 305),
    (LLAMA_8B, "fp8", 8.03, 570),
    (LLAMA_8B, "int4-wo", 4.65, 985),
    (QWEN_7B, "auto", 14.1, 324),
])
def test_single_stream_limits_of_an_h200(model, weights, giga_bytes, tokens_per_s):
    roofline = on("H200", model, weight_dtype=weights)
    read = physics.weight_read_bytes(model, roofline.weights)
    assert read / 1e9 == pytest.approx(giga_bytes, rel=0.005)
    assert round(roofline.decode_tokens_per_s(1)) == tokens_per_s
    assert roofline.decode_step(1).bound == "bandwidth"


@pytest.mark.parametrize(("gpu", "weights", "tokens_per_s"), [
    ("H100", "auto", 223), ("H100", "fp8", 417), ("RTX 4090", "int8-wo", 125)])
def test_single_stream_limits_that_published_claims_break(gpu, weights, tokens_per_s):
    assert round(on(gpu, weight_dtype=weights).decode_tokens_per_s(1)) == tokens_per_s


def test_kv_cache_counts_the_caches_own_heads():
    assert physics.kv_bytes_per_token(LLAMA_8B) == 128 * 1024
    assert physics.kv_bytes_per_token(LLAMA_8B, "fp8") == 64 * 1024
    assert physics.kv_bytes_per_token(LLAMA_8B, tp_size=4) == 32 * 1024
    assert physics.kv_bytes_per_token(LLAMA_8B, tp_size=16) == 16 * 1024, "a rank holds one head at least"
    assert physics.kv_bytes_per_token(QWEN_7B) == 2 * 28 * 4 * 128 * 2


@pytest.mark.parametrize(("num_tokens", "floor_ms"), [(129, 3.1), (544, 9.0), (914, 15.1), (8000, 148)])
def test_time_to_first_token_floors_of_qwen_7b_on_an_h200(num_tokens, floor_ms):
    assert on("H200", QWEN_7B).ttft_s(num_tokens) * 1e3 == pytest.approx(floor_ms, rel=0.02)


def test_a6000_cannot_prefill_as_fast_as_was_claimed():
    assert on("A6000", QWEN_7B).ttft_s(2222) == pytest.approx(0.190, rel=0.03)
    assert on("A6000", QWEN_7B).ttft_s(914) == pytest.approx(0.077, rel=0.03)
    cached = on("A6000", QWEN_7B).ttft_s(2222, num_cached_tokens=2176)
    assert cached < 0.048, "with the prompt in the prefix cache the claim is possible"


@pytest.mark.parametrize(("input_tokens", "output_tokens", "batch", "rough"), [
    (128, 128, 4096, 41_000), (1000, 1000, 1024, 23_000), (128, 2048, 1024, 36_000), (2048, 128, 512, 4_500)])
def test_full_load_of_an_8b_in_fp8(input_tokens, output_tokens, batch, rough):
    limit = on("H200", weight_dtype="fp8", kv_cache_dtype="fp8").full_load(input_tokens, output_tokens, batch)
    assert output_tokens / limit.serial_s == pytest.approx(rough, rel=0.12)
    assert limit.seconds < limit.serial_s


@pytest.mark.parametrize(("model", "count"), [(LLAMA_8B, 8_030_261_248), (QWEN_7B, 7_615_616_512)])
def test_parameter_counts_of_published_models(model, count):
    assert physics.num_params(model) == count


# --- against plain counting


@pytest.mark.parametrize("model", [LLAMA_8B, QWEN_7B, GEMMA_LIKE, dataclasses.replace(
    GEMMA_LIKE, qk_norm=True, attention_bias=True, mlp_bias=True, output_bias=True, tie_word_embeddings=False)])
def test_parameters_are_those_the_architecture_declares(model):
    declared = sum(math.prod(spec.shape) for spec in get_architecture(model.architecture).weights(model))
    assert physics.num_params(model) == declared
    assert physics.weight_memory_bytes(model, physics.weight_format(model)) == 2 * declared


@pytest.mark.parametrize("tp_size", [2, 4, 8])
def test_ranks_hold_what_the_architecture_splits(tp_size):
    declared = 0
    for spec in get_architecture(LLAMA_8B.architecture).weights(LLAMA_8B):
        declared += math.prod(spec.rank_shape(tp_size))
    assert physics.weight_memory_bytes(LLAMA_8B, physics.weight_format(LLAMA_8B), tp_size=tp_size) == 2 * declared


@pytest.mark.parametrize("window", [1, 5, 1000])
def test_attention_flops_are_those_of_the_mask(window):
    model = dataclasses.replace(GEMMA_LIKE, sliding_window=window)
    rng = random.Random(window)
    start = rng.randrange(0, 30)
    stop = start + rng.randrange(1, 40)
    pairs = 0
    for layer in range(model.num_layers):
        for position in range(start, stop):
            low = 0 if model.layer_kinds[layer] == "full" else position - window + 1
            pairs += sum(1 for other in range(position + 1) if other >= low)
    assert physics.attention_flops(model, start, stop) == pairs * 4 * model.q_size


def test_windowed_layers_read_no_more_than_their_window():
    full, windowed = dataclasses.replace(GEMMA_LIKE, layer_kinds=()), GEMMA_LIKE
    assert physics.kv_read_bytes(full, 100) == 100 * physics.kv_bytes_per_token(full)
    assert physics.kv_read_bytes(windowed, 100) == (2 * 100 + 2 * 7) * 2 * 4 * 16 * 2


def test_prefill_in_two_parts_costs_one_more_head():
    whole = physics.prefill_flops(LLAMA_8B, 700)
    parts = physics.prefill_flops(LLAMA_8B, 300) + physics.prefill_flops(LLAMA_8B, 700, num_cached_tokens=300)
    assert parts - whole == pytest.approx(2 * physics.head_params(LLAMA_8B))


def test_decode_of_a_batch_is_the_sum_of_its_parts():
    roofline, batch, context = on("H200"), 256, 1000
    step = roofline.decode_step(batch, context)
    read = 15.009849344e9 + batch * context * 128 * 1024
    assert step.read_s == pytest.approx(read / 4.58e12)
    flops = batch * (2 * (physics.layer_params(LLAMA_8B) + physics.head_params(LLAMA_8B)) + 4 * 4096 * context * 32)
    assert step.compute_s == pytest.approx(flops / 790e12)
    assert roofline.decode_tokens_per_s(batch, context) == pytest.approx(batch / max(step.read_s, step.compute_s))


def test_bound_turns_from_bandwidth_to_compute_as_the_batch_grows():
    bounds = [on("H200").decode_step(batch).bound for batch in (1, 16, 1024, 4096)]
    assert bounds == ["bandwidth", "bandwidth", "compute", "compute"]


def test_ranks_share_the_work_evenly():
    one, four = on("H200").decode_step(64, 500), on("H200", tp_size=4).decode_step(64, 500)
    assert four.compute_s == pytest.approx(one.compute_s / 4)
    assert four.read_s == pytest.approx(one.read_s / 4, rel=1e-3), "all but the norms"


def test_types_without_units_run_at_a_wider_types_rate():
    a100 = find_hardware("A100")
    assert "fp8" not in a100.flops
    assert a100.peak_flops("fp8") == 312e12
    assert find_hardware("H200").peak_flops("fp8") == 1360e12


def test_cache_is_granted_only_when_asked_for():
    tiny = dataclasses.replace(GEMMA_LIKE, hidden_size=128)
    plain, granted = on("H200", tiny), on("H200", tiny, grant_cache=True)
    assert plain.decode_step(1).bound == "bandwidth"
    assert granted.decode_step(1).read_s == 0.0
    assert granted.decode_tokens_per_s(1) > plain.decode_tokens_per_s(1)
    assert on("H200", grant_cache=True).decode_tokens_per_s(1) == pytest.approx(305, rel=0.01)


# --- the table and bad input


def test_every_entry_is_whole_and_sourced():
    assert {h.name for h in HARDWARE} >= {"RTX A6000", "RTX 4090", "L40S", "A100 80GB SXM", "H100 SXM", "H200", "B200"}
    for hardware in HARDWARE:
        assert set(hardware.sources) == {"memory_bytes", "cache_bytes", "bandwidth", "flops"}
        assert all(hardware.sources.values())
        assert {"float32", "bf16", "int8"} <= set(hardware.flops)
        assert hardware.flops["float32"] < hardware.flops["bf16"] < hardware.flops["int8"]
        assert 20e9 < hardware.memory_bytes < 200e9
        assert 0.5e12 < hardware.bandwidth < 10e12
        assert find_hardware(hardware.name) is hardware


def test_spellings_name_one_entry_each():
    spellings = [physics._plain(name) for h in HARDWARE for name in {h.name, *h.aliases}]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(("spelling", "name"), [
    ("NVIDIA H200", "H200"), ("h100", "H100 SXM"), ("NVIDIA H100 80GB HBM3", "H100 SXM"),
    ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
    ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"), ("NVIDIA A100-PCIE-40GB", "A100 40GB PCIe"),
    ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("nvidia rtx a6000", "RTX A6000"), ("NVIDIA L40S", "L40S"),
    ("NVIDIA B200", "B200"), ("rtx-4090", "RTX 4090")])
def test_names_as_people_and_nvml_write_them(spelling, name):
    assert find_hardware(spelling).name == name


@pytest.mark.parametrize("name", ["", "H300", "GTX 1080", "l40"])
def test_unknown_hardware_is_refused_with_the_list(name):
    with pytest.raises(ConfigError, match=r"gpu must be one of .*H200.* or cpu"):
        find_hardware(name)


def test_unknown_types_are_refused_by_field():
    with pytest.raises(ConfigError, match="weight_dtype must be auto or one of"):
        physics.weight_format(LLAMA_8B, "fp4")
    with pytest.raises(ConfigError, match="kv_cache_dtype must be one of"):
        physics.kv_bytes_per_token(LLAMA_8B, "int2")


# --- this machine

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2.80GHz
cpu MHz\t\t: 2194.8
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 fma avx2 avx512f avx512_bf16
processor\t: 1
physical id\t: 0
core id\t\t: 0
processor\t: 2
physical id\t: 0
core id\t\t: 1
"""


def test_threads_of_one_core_count_once():
    assert host.count_cores(CPUINFO, 3) == 2
    assert host.count_cores(CPUINFO, 1) == 1, "no more than this process may use"
    assert host.count_cores("", 5) == 5


def test_clock_is_the_highest_that_is_told(monkeypatch):
    monkeypatch.setattr(host, "read_text", lambda path: "")
    assert host.clock_hz(CPUINFO) == 2.8e9
    monkeypatch.setattr(host, "read_text", lambda path: "3900000\n")
    assert host.clock_hz(CPUINFO) == 3.9e9


def test_instruction_sets_set_the_rates():
    assert host.flops_per_clock({"avx512f", "avx512_bf16", "fma"}) == {"float32": 64, "bf16": 128, "int8": 64}
    assert host.flops_per_clock({"fma"}) == {"float32": 32, "bf16": 32, "int8": 32}
    assert host.flops_per_clock(set())["bf16"] == 4


def test_control_groups_limit_the_memory(monkeypatch):
    files = {"/proc/meminfo": "MemTotal:       1000 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}
    monkeypatch.setattr(host, "read_text", lambda path: files.get(str(path), ""))
    assert host.memory_bytes() == 1_024_000
    files["/sys/fs/cgroup/memory.max"] = "500000\n"
    assert host.memory_bytes() == 500_000


def test_read_bandwidth_is_measured():
    rate = host.measure_read_bandwidth(2, num_rounds=1, bytes_per_thread=4 * 2**20)
    assert 1e6 < rate < 1e13


def test_this_machine_is_an_entry_like_any_other(monkeypatch):
    monkeypatch.setattr(host, "measure_read_bandwidth", lambda num_threads: 40e9)
    host.measure_cpu.cache_clear()
    try:
        cpu = find_hardware("CPU")
    finally:
        host.measure_cpu.cache_clear()
    assert cpu.architecture == "cpu"
    assert cpu.bandwidth == 40e9
    assert cpu.memory_bytes > 2**28
    assert cpu.flops["float32"] > 1e9
    assert "estimated" in cpu.sources["flops"]
