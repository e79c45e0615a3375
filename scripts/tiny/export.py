"""From training output to the Hugging Face checkpoint directory that ships, and its model card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tiny import tokens
from tiny.model import TinyConfig, TinyLlama

MAX_SHARD_BYTES = 14 * 2**20
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_shards(state: dict[str, torch.Tensor], folder: Path, *, step: int) -> None:
    """Write `state` as bf16 shards under MAX_SHARD_BYTES, each stamped with `step`, each by rename."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    used_bytes = 0
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if used_bytes + tensor.nbytes > MAX_SHARD_BYTES:
            groups.append({})
            used_bytes = 0
        groups[-1][name] = tensor
        used_bytes += tensor.nbytes
    for index, group in enumerate(groups, start=1):
        path = folder / f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file(group, temporary, metadata={"format": "pt", "step": str(step)})
        temporary.chmod(0o644)
        os.replace(temporary, path)


def load_shards(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of `save_shards` and their step. Raises ValueError when shards are missing or of different steps."""
    paths = sorted(folder.glob("model-*-of-*.safetensors"))
    if not paths or len(paths) != int(paths[0].stem.rsplit("-", 1)[1]):
        raise ValueError(f"{folder}: found {len(paths)} model shards, not the full set")
    state: dict[str, torch.Tensor] = {}
    steps: set[str] = set()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            steps.add((file.metadata() or {})["step"])
            names = file.keys()
            state |= {name: file.get_tensor(name) for name in names}
    if len(steps) != 1:
        raise ValueError(f"{folder}: shards come from different steps: {sorted(steps)}")
    return state, int(steps.pop())


def write_checkpoint(
    folder: Path, config: TinyConfig, state: dict[str, torch.Tensor], tokenizer: Tokenizer, card: str
) -> None:
    """Write every file of a Hugging Face checkpoint: config, weights, tokenizer, chat template, defaults, card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, _json(hf_config(config)))
    write_text(folder / "generation_config.json", _json(generation_config()))
    write_text(folder / "tokenizer_config.json", _json(tokenizer_config(config)))
    write_text(folder / "chat_template.jinja", tokens.CHAT_TEMPLATE)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")
    write_text(folder / "README.md", card)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    temporary = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    os.replace(temporary, folder / WEIGHTS_FILE)


def transformers_difference(folder: Path, model: TinyLlama) -> float | None:
    """Largest logit difference between `model` and transformers' reading of `folder`, over the largest logit.

    None when transformers is not installed. Raises ValueError when the two disagree.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(model.config.vocab_size, (2, 512), generator=generator)
    with torch.no_grad():
        ours, theirs = model(sample), peer(sample).logits
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if difference > 1e-4:
        raise ValueError(f"{folder}: logits differ from transformers by {difference:.2e} of the largest")
    return difference


def hf_config(config: TinyConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokens.BOS_ID,
        "eos_token_id": [tokens.BOS_ID, tokens.END_ID],
        "pad_token_id": tokens.PAD_ID,
        "hidden_act": "silu",
        "mlp_bias": False,
        **config.to_dict(),
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": tokens.BOS_ID,
        "eos_token_id": [tokens.BOS_ID, tokens.END_ID],
        "pad_token_id": tokens.PAD_ID,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def tokenizer_config(config: TinyConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.END_OF_TEXT,
        "eos_token": tokens.END_OF_TEXT,
        "pad_token": tokens.PAD,
        "additional_special_tokens": [tokens.USER, tokens.ASSISTANT, tokens.SYSTEM, tokens.END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
