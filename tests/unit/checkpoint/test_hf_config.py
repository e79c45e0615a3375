"""config.json and generation_config.json: both spellings, and everything that can be wrong with the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import ARCHITECTURES, make_checkpoint

from pelton.checkpoint.hf_config import load_generation_config, load_model_config
from pelton.errors import CheckpointError

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "eos_token_id": 1, "bos_token_id": 0, "dtype": "float32",
}


def write(path: Path, generation: Any = None, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_spellings_read_the_same(architecture: str, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    if architecture == "Phi3ForCausalLM":
        rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 1.0}
    configs = [load_model_config(make_checkpoint(architecture, tmp_path / spelling, dtype="bfloat16",
                                                 spelling=spelling, num_hidden_layers=2, rope_parameters=dict(rope)))
               for spelling in ("new", "old")]
    assert configs[0] == configs[1]
    assert configs[0].dtype == "bfloat16"
    assert configs[0].rope.theta == 5000.0
    assert configs[0].rope.factor == rope.get("factor", 1.0)


@pytest.mark.parametrize(("generation", "eos_ids"), [
    (None, (1,)),
    ({}, (1,)),
    ({"eos_token_id": [5, 1, 7]}, (1, 5, 7)),
    ({"eos_token_id": 9}, (1, 9)),
])
def test_end_tokens_of_both_files(tmp_path: Path, generation: Any, eos_ids: tuple[int, ...]) -> None:
    assert load_model_config(write(tmp_path, generation)).eos_ids == eos_ids


def test_generation_config(tmp_path: Path) -> None:
    assert load_generation_config(write(tmp_path)) == {}
    write(tmp_path, {"temperature": 0.7, "top_p": 0.9})
    assert load_generation_config(tmp_path) == {"temperature": 0.7, "top_p": 0.9}


@pytest.mark.parametrize(("changes", "text"), [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.* not supported; .*LlamaForCausalLM.*Qwen3ForCausalLM"),
    ({"architectures": []}, "architectures: expected a list"),
    ({"architectures": None}, "architectures: expected a list"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq are not supported; .*float32, bfloat16"),
    ({"quantization_config": "odd"}, "quantized by an unnamed method"),
    ({"num_key_value_heads": 3}, "num_kv_heads"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"eos_token_id": 320}, "eos_token_id .*beyond vocab_size 320"),
    ({"dtype": "float8"}, "dtype"),
])
def test_unusable_fields(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError, match=text) as caught:
        load_model_config(write(tmp_path, **changes))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("generation", [{"eos_token_id": "1"}, {"eos_token_id": [True]}, {"eos_token_id": -1}, [1]])
def test_unusable_generation_config(tmp_path: Path, generation: Any) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json: .*(eos_token_id|JSON object)"):
        load_model_config(write(tmp_path, generation))


@pytest.mark.parametrize(("content", "text"), [
    (b"{", "config.json: not valid JSON"),
    (b"\xff\xfe", "config.json: not valid JSON"),
    (b"[]", "config.json: expected a JSON object, found a list"),
])
def test_damaged_config(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        load_model_config(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model_config(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model_config(tmp_path / "nothing")


def test_needs_no_torch() -> None:
    modules = "pelton.checkpoint.hf_config, pelton.checkpoint.hub, pelton.manifest, pelton.build.prepare"
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
