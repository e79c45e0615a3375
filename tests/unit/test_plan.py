"""The memory ledger, what fits, and the command that shows it."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import fake_hub
from rich.console import Console

from pelton import ledger as ledgers
from pelton.build import plan_report
from pelton.build.plan import Plan, PlanOptions, make_plan, run_plan
from pelton.checkpoint.hub import resolve_config
from pelton.config import BuildConfig, KvCacheConfig, ModelConfig
from pelton.errors import CapacityError, CheckpointError, ConfigError
from pelton.ledger import Ledger, predict_ledger
from pelton.physics import GIB, find_hardware

LLAMA_8B = ModelConfig(architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
                       num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, max_position_embeddings=131072)
LLAMA_70B = dataclasses.replace(LLAMA_8B, hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64)


def plan_of(gpu: str, model: ModelConfig = LLAMA_8B, **options: object) -> Plan:
    return make_plan(model, find_hardware(gpu), PlanOptions(model="m", gpu=gpu, **options))


def text_of(gpu: str, model: ModelConfig = LLAMA_8B, **options: object) -> str:
    out = io.StringIO()
    given = PlanOptions(model="m", gpu=gpu, **options)
    plan_report.print_one(model, given, make_plan(model, find_hardware(gpu), given), Console(file=out, width=110))
    return out.getvalue()


# --- the ledger


def test_dense_counts_are_in_the_ledger():
    model = dataclasses.replace(LLAMA_8B, vocab_size=152064)
    assert round(ledgers.sampling_state_bytes(model, BuildConfig(max_batch_size=1024)) / 1e6) == 623


def test_ledger_of_an_8b_adds_up():
    ledger = predict_ledger(LLAMA_8B, BuildConfig(), find_hardware("H200"))
    assert ledger.weights_bytes == 2 * 8_030_261_248
    assert ledger.block_bytes == 64 * 128 * 1024
    assert ledger.fixed_bytes + ledger.kv_blocks_bytes + ledger.free_bytes == ledger.memory_bytes
    left = ledger.memory_bytes - ledger.fixed_bytes
    assert 0.9 * left - ledger.block_bytes < ledger.kv_blocks_bytes <= 0.9 * left
    assert ledger.kv_tokens == ledger.num_blocks * 64
    assert ledger.num_sequences(65) == ledger.num_blocks // 2, "a sequence takes whole blocks"


def test_kv_config_narrows_the_blocks():
    hardware = find_hardware("H200")
    half = predict_ledger(LLAMA_8B, BuildConfig(), hardware, kv=KvCacheConfig(free_memory_fraction=0.45))
    full = predict_ledger(LLAMA_8B, BuildConfig(), hardware)
    assert abs(full.num_blocks - 2 * half.num_blocks) <= 1
    assert predict_ledger(LLAMA_8B, BuildConfig(), hardware, kv=KvCacheConfig(max_blocks=7)).num_blocks == 7


def test_ledger_survives_json_and_refuses_what_it_does_not_know():
    ledger = predict_ledger(LLAMA_8B, BuildConfig(), find_hardware("L40S"))
    data = json.loads(json.dumps(ledger.to_json()))
    assert data["kv_blocks_bytes"] == ledger.kv_blocks_bytes
    assert Ledger.from_json(data) == ledger
    with pytest.raises(ConfigError, match=r"ledger\.json: unknown key 'colour'"):
        Ledger.from_json({**data, "colour": 1}, where="ledger.json")
    with pytest.raises(ConfigError, match="weights_bytes"):
        Ledger.from_json({**data, "weights_bytes": "many"})
    with pytest.raises(ConfigError, match="expected an object, got list"):
        Ledger.from_json([])


def test_too_little_memory_is_an_error_that_names_the_options():
    ledger = predict_ledger(LLAMA_8B, BuildConfig(max_seq_len=4096), find_hardware("RTX 4090"))
    ledger.require_fit(2048)
    with pytest.raises(CapacityError, match=r"one sequence of 131072 tokens needs 2048; lower max_seq_len"):
        ledger.require_fit(131072)
    assert predict_ledger(LLAMA_70B, BuildConfig(), find_hardware("RTX 4090")).num_blocks == 0


def test_ranks_hold_a_share():
    one = predict_ledger(LLAMA_70B, BuildConfig(), find_hardware("H200"))
    four = predict_ledger(LLAMA_70B, BuildConfig(), find_hardware("H200"), tp_size=4)
    assert four.weights_bytes == pytest.approx(one.weights_bytes / 4, rel=1e-3)
    assert four.block_bytes * 4 == one.block_bytes
    assert four.sampling_state_bytes == one.sampling_state_bytes, "every rank samples"


def test_a_cpu_has_no_graphs_and_keeps_memory_for_the_system():
    cpu = dataclasses.replace(find_hardware("H200"), architecture="cpu", memory_bytes=64 * GIB)
    ledger = predict_ledger(LLAMA_8B, BuildConfig(), cpu)
    assert (ledger.graphs_bytes, ledger.workspace_bytes, ledger.reserve_bytes) == (0, 0, 16 * GIB)


# --- plans


def test_plan_of_an_8b_on_an_h200():
    plan = plan_of("H200", input_len=128, output_len=128, batch_sizes=(1, 128))
    assert plan.fits
    assert plan.remedies == ()
    assert plan.max_concurrency == 256, "max_batch_size holds it"
    single, many = plan.speeds
    assert single.tokens_per_s == pytest.approx(305, abs=1), "a short context adds little"
    assert single.tokens_per_s < many.tokens_per_s < 128 * single.tokens_per_s
    assert single.decode_step.bound == "bandwidth"
    assert 16_948 < plan.full_load_tokens_per_s < 30_000, "above what was measured of an engine"


def test_concurrency_is_what_the_blocks_hold():
    plan = plan_of("RTX 4090", max_seq_len=4096, max_num_tokens=2048, max_batch_size=64, input_len=3000,
                   output_len=1000)
    assert plan.max_concurrency == plan.ledger.num_blocks // 63
    assert 0 < plan.max_concurrency < 64
    fits = [speed.fits for speed in plan_of("RTX 4090", max_seq_len=4096, batch_sizes=(1, 2, 100_000)).speeds]
    assert fits == [True, True, False]


def test_what_does_not_fit_says_what_would():
    plan = plan_of("L40S", LLAMA_70B, max_seq_len=8192)
    assert not plan.fits
    assert plan.remedies == ("--weight-dtype int4-wo", "--tp-size 4")
    assert plan.full_load is None
    text = " ".join(text_of("L40S", LLAMA_70B, max_seq_len=8192).split())
    assert "L40S: one sequence of 8,192 tokens does not fit" in text
    assert "would fit with --weight-dtype int4-wo or --tp-size 4" in text


@pytest.mark.parametrize("remedy", range(10))
def test_each_remedy_really_fits(remedy):
    options = {"max_seq_len": 131072, "max_batch_size": 256}
    plan = plan_of("RTX 4090", **options)
    assert not plan.fits
    if remedy < len(plan.remedies):
        flag, value = plan.remedies[remedy].split()
        name = flag[2:].replace("-", "_")
        options[name] = int(value) if value.isdigit() else value
        assert plan_of("RTX 4090", **options).fits


def test_a_cpu_is_never_told_to_use_more_ranks():
    cpu = dataclasses.replace(find_hardware("H200"), architecture="cpu", memory_bytes=4 * GIB)
    plan = make_plan(LLAMA_8B, cpu, PlanOptions(model="m"))
    assert not plan.fits
    assert not any("tp" in remedy for remedy in plan.remedies)


@pytest.mark.parametrize(("options", "message"), [
    ({"max_seq_len": 200_000}, "max_seq_len must be at most the model's context of 131072"),
    ({"max_seq_len": 100, "input_len": 90, "output_len": 20}, "input_len \\+ output_len must be at most max_seq_len"),
    ({"max_input_len": 100, "input_len": 101}, "input_len must be at most max_input_len, 100"),
    ({"tp_size": 3}, "tp_size must divide"),
    ({"tp_size": 0}, "tp_size must be at least 1"),
    ({"batch_sizes": ()}, "batch_sizes must be at least one number"),
    ({"batch_sizes": (0,)}, "batch_sizes must be at least 1"),
    ({"input_len": -1}, "input_len must be at least 1"),
    ({"max_batch_size": 0}, "max_batch_size must be between"),
    ({"max_num_tokens": 10}, "max_num_tokens must be at least max_batch_size"),
])
def test_bad_options_are_refused_by_field(options, message):
    with pytest.raises(ConfigError, match=message):
        plan_of("H200", **options)


@pytest.mark.parametrize("max_seq_len", [2, 3, 50, 2048])
def test_default_lengths_shrink_with_the_context(max_seq_len):
    plan = plan_of("H200", max_seq_len=max_seq_len)
    assert plan.input_len >= 1
    assert plan.output_len >= 1
    assert plan.input_len + plan.output_len <= max_seq_len


# --- the command


def test_tables_name_bounds_and_sources():
    text = " ".join(text_of("H200", input_len=1000, output_len=1000).split())
    assert "128 KiB a token (8 KV heads of 32 heads)" in text
    assert "reads 15 GB of weights" in text
    assert "bandwidth 4.58 TB/s: measured" in text
    assert "weights 15.0" in text
    assert "cache" in text
    assert "beat these limits" not in text


def test_small_models_are_told_about_the_cache():
    tiny = dataclasses.replace(LLAMA_8B, hidden_size=256, intermediate_size=512, num_layers=2, vocab_size=1000)
    assert "beat these limits" in " ".join(text_of("H200", tiny).split())


def test_command_without_a_gpu_name_shows_them_all(capsys):
    assert run_plan(PlanOptions(model="pelton-tiny")) == 0
    out = capsys.readouterr().out
    for name in ("RTX A6000", "RTX 4090", "L40S", "A100 80GB SXM", "H100 SXM", "H200", "B200", "cpu"):
        assert name in out


def test_command_prints_json(capsys):
    assert run_plan(PlanOptions(model="pelton-tiny", gpu="nvidia h200", json=True, batch_sizes=(1, 4))) == 0
    data = json.loads(capsys.readouterr().out)
    (plan,) = data["plans"]
    assert plan["gpu"] == "H200"
    assert [speed["batch_size"] for speed in plan["speeds"]] == [1, 4]
    assert plan["speeds"][0]["decode_step"]["bound"] == "bandwidth"
    assert plan["hardware"]["sources"]["bandwidth"]
    assert Ledger.from_json(plan["ledger"]).num_blocks > 0
    assert data["kv_bytes_per_token"] == 2 * 6 * 2 * 64 * 2


def test_exit_code_tells_what_does_not_fit(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192,
        "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}))
    assert run_plan(PlanOptions(model=str(tmp_path), gpu="4090")) == 1
    assert "does not fit" in capsys.readouterr().out
    assert run_plan(PlanOptions(model=str(tmp_path), gpu="B200", weight_dtype="fp8")) == 0


def test_unknown_model_or_gpu_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        run_plan(PlanOptions(model=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match="gpu must be one of"):
        run_plan(PlanOptions(model="pelton-tiny", gpu="GTX 970"))


@pytest.fixture
def hub() -> Iterator[fake_hub.FakeHub]:
    server = fake_hub.FakeHub()
    yield server
    server.close()


def test_a_hub_models_weights_are_not_fetched(hub: fake_hub.FakeHub, tmp_path: Path):
    config = b'{"architectures": ["LlamaForCausalLM"]}'
    hub.repositories["org/model"] = fake_hub.Repository({"config.json": config, "model.safetensors": b"x" * 100})
    path = resolve_config("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert (path / "config.json").read_bytes() == config
    assert hub.downloads() == ["config.json"]
    hub.failure = 503
    assert resolve_config("org/model", endpoint=hub.endpoint, cache_dir=tmp_path) == path


def test_an_unknown_hub_model_is_an_error(hub: fake_hub.FakeHub, tmp_path: Path):
    with pytest.raises(CheckpointError, match="org/none"):
        resolve_config("org/none", endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.failure = 503
    with pytest.raises(CheckpointError, match="org/none"):
        resolve_config("org/none", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_plan_needs_no_torch():
    import subprocess

    code = ("import sys; from pelton.build.plan import PlanOptions, run_plan; "
            "run_plan(PlanOptions(model='pelton-tiny', gpu='H200')); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'triton')))")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
