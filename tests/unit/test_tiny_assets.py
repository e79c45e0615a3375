"""The shipped pelton-tiny checkpoint, its card and the held-out text are complete and within their limits."""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "src" / "pelton" / "models_data" / "pelton-tiny"
HELDOUT = ROOT / "data" / "heldout-python.txt"
SOURCES = ROOT / "data" / "tiny-sources.csv"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Any]]:
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return header


def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    template = jinja2.Environment().from_string((CHECKPOINT / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(
        messages=messages,
        bos_token="<|endoftext|>",
        add_generation_prompt=add_generation_prompt,
        raise_exception=raise_exception,
    )


def test_weights_are_bf16_within_the_size_limit(tensors: dict[str, dict[str, Any]]) -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 24_000_000
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}


def test_shape_is_a_grouped_query_llama(config: dict[str, Any], tensors: dict[str, dict[str, Any]]) -> None:
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert 5_000_000 <= sum(math.prod(tensor["shape"]) for tensor in tensors.values()) <= 11_000_000
    assert config["num_attention_heads"] > config["num_key_value_heads"] >= 2
    assert config["max_position_embeddings"] >= 1024
    heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    hidden = config["hidden_size"]
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{layer}.{norm}.weight"] = [hidden]
        expected[f"{layer}.self_attn.q_proj.weight"] = [heads * head_dim, hidden]
        expected[f"{layer}.self_attn.k_proj.weight"] = [kv_heads * head_dim, hidden]
        expected[f"{layer}.self_attn.v_proj.weight"] = [kv_heads * head_dim, hidden]
        expected[f"{layer}.self_attn.o_proj.weight"] = [hidden, heads * head_dim]
        expected[f"{layer}.mlp.gate_proj.weight"] = [config["intermediate_size"], hidden]
        expected[f"{layer}.mlp.up_proj.weight"] = [config["intermediate_size"], hidden]
        expected[f"{layer}.mlp.down_proj.weight"] = [hidden, config["intermediate_size"]]
    assert config["tie_word_embeddings"] is True
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == expected


def test_special_tokens_agree_across_files(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    assert tokenizer.get_vocab_size() == config["vocab_size"] <= 8192
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    names = json.loads((CHECKPOINT / "tokenizer_config.json").read_text(encoding="utf-8"))
    stop_ids = [tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|end|>")]
    assert config["eos_token_id"] == generation["eos_token_id"] == stop_ids
    assert config["bos_token_id"] == tokenizer.token_to_id(names["bos_token"])
    assert config["pad_token_id"] == tokenizer.token_to_id(names["pad_token"])
    assert names["model_max_length"] == config["max_position_embeddings"]


@pytest.mark.parametrize(
    "text",
    [
        "def fibonacci(n):\n    if n < 2:\n        return n\n",
        "\tx = 'naïve café' # 東京 🏔️ \u200d\u0000\r\n",
        "  leading and trailing  \n\n\n",
        "a" * 3000,
        "1234567890.5e-10",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokens_end_where_lines_of_code_end(tokenizer: Tokenizer) -> None:
    code = "def f(x):\n    return x\n"
    whole = tokenizer.encode(code, add_special_tokens=False).ids
    head = tokenizer.encode("def f(x):", add_special_tokens=False).ids
    assert whole[: len(head)] == head


@pytest.mark.parametrize("content", ["hi", "def f(x):", "é", "\n", "    return"])
def test_chat_frame_is_at_most_eight_tokens(tokenizer: Tokenizer, content: str) -> None:
    framed = tokenizer.encode(render([{"role": "user", "content": content}]), add_special_tokens=False).ids
    plain = tokenizer.encode(content, add_special_tokens=False).ids
    assert len(framed) - len(plain) == 4
    assert framed[2:-2] == plain


def test_chat_template_renders_a_conversation_and_refuses_other_roles() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    expected = "<|endoftext|><|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>"
    assert render(messages, add_generation_prompt=False) == expected
    with pytest.raises(jinja2.TemplateError, match="tool"):
        render([{"role": "tool", "content": "x"}])


def test_heldout_text_is_large_enough_and_apart_from_training() -> None:
    text = HELDOUT.read_text(encoding="utf-8")
    assert len(text.encode()) >= 200_000
    with SOURCES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len({row["sha256"] for row in rows}) == len(rows)
    heldout = [row for row in rows if row["split"] == "heldout"]
    assert {row["licence"] for row in heldout} == {"PSF-2.0"}
    # The text is exactly those files: only the empty lines between them differ.
    assert abs(sum(int(row["bytes"]) for row in heldout) - len(text.encode())) < 10 * len(heldout)
    assert {row["split"] for row in rows} == {"train", "valid", "heldout"}
    assert all(row["licence"] for row in rows)


def test_card_states_data_steps_quality_and_licence(config: dict[str, Any]) -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data", "### Licence of the data", "## Training", "## Held-out quality"):
        assert heading in card
    steps = re.search(r"\| steps \| ([\d,]+) of", card)
    heldout = re.search(r"\| held out [^|]+\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|", card)
    assert steps is not None
    assert int(steps[1].replace(",", "")) > 1000
    assert heldout is not None
    # A table of byte frequencies alone reaches about 5 bits per byte; a trained model is well under 2.
    assert 1.0 < float(heldout[2]) < 30.0
    assert 0.2 < float(heldout[3]) < 1.5
    assert "PSF-2.0" in card
    assert f"{config['max_position_embeddings']:,} tokens" in card
