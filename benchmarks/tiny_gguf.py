"""pelton-tiny for other people's servers: its checkpoint with a tokenizer that llama.cpp knows, and the same as GGUF.

llama.cpp splits text by rules it has built in, and pelton-tiny's are not among them. The copy splits as GPT-2 does, in
both forms, so that every server counts and generates the same. The copy ends its texts with the padding token, which
it never generates: a server that cannot be told to ignore the end (transformers') gives whole answers too. Needs the
package gguf.

    python benchmarks/tiny_gguf.py FOLDER      writes FOLDER/checkpoint and FOLDER/tiny.gguf
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def main() -> None:
    folder = Path(sys.argv[1])
    checkpoint = folder / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.copytree(str(files("pelton") / "models_data" / "pelton-tiny"), checkpoint)
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                  "use_regex": True}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps({**config, "eos_token_id": config["pad_token_id"]}))
    write_gguf(checkpoint, tokenizer, folder / "tiny.gguf")
    print(json.dumps({"checkpoint": str(checkpoint), "gguf": str(folder / "tiny.gguf")}))


def write_gguf(checkpoint: Path, tokenizer: dict[str, Any], path: Path) -> None:
    """The checkpoint in float32."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("pelton-tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, tokenizer, config, (checkpoint / "chat_template.jinja").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, array in read_bfloat16(checkpoint / "model.safetensors"):
        kind = name.removesuffix(".weight").rpartition(".")[2]
        writer.add_tensor(gguf_name(name), rotate_pairs(array, heads[kind]) if kind in heads else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any], template: str) -> None:
    special = {token["id"] for token in tokenizer["added_tokens"]}
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted({**tokenizer["model"]["vocab"], **added}.items(),
                    key=lambda item: item[1])
    assert [number for _, number in tokens] == list(range(config["vocab_size"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL
                            for _, number in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(template)


def read_bfloat16(path: Path) -> list[tuple[str, np.ndarray]]:
    """Every tensor as float32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", (name, entry)
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        high = np.frombuffer(data[begin:end], dtype="<u2").astype(np.uint32) << 16
        found.append((name, high.view(np.float32).reshape(entry["shape"])))
    return found


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def rotate_pairs(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """From rotating halves of a head to rotating neighbours, as GGUF's llama has it; weight: [heads * D, H]."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


if __name__ == "__main__":
    main()
