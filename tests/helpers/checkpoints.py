"""Small random Hugging Face checkpoints of every supported architecture, written by transformers itself.

Tests compare against transformers, so the files, the config's spelling and the tensor names must be transformers' own.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Phi3ForCausalLM",
)
VOCAB_SIZE = 320
BOS_ID, EOS_ID, PAD_ID, USER_ID, ASSISTANT_ID, END_ID = range(6)
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}
_EXTRAS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"tie_word_embeddings": False},
    "MistralForCausalLM": {"tie_word_embeddings": False, "sliding_window": 24},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {"tie_word_embeddings": True, "head_dim": 32},
    "Gemma2ForCausalLM": {
        "tie_word_embeddings": True,
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
    },
    "Phi3ForCausalLM": {"tie_word_embeddings": False},
}


def make_checkpoint(
    architecture: str,
    tmp_path: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    sharded: bool = False,
    spelling: Literal["new", "old"] = "new",
    with_tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Writes a checkpoint of 4 layers, hidden size 64, 4 heads over 2 key/value heads into a new folder.

    Args:
        architecture: one of ARCHITECTURES, as in `architectures[0]`.
        tmp_path: folder in which the checkpoint's own folder is made.
        sharded: several safetensors files and an index in place of one.
        spelling: "old" writes `torch_dtype`, `rope_theta` and `rope_scaling`, "new" what transformers 5 writes.
        overrides: fields of the Hugging Face config, under its names (rope_parameters, num_hidden_layers, ...).

    Returns:
        The checkpoint's folder.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    config = config_class(**{**_SHAPE, **_EXTRAS[architecture], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config).to(getattr(torch, dtype))
        _randomize(model)
    names = [architecture, dtype, str(seed), "sharded" if sharded else "single"]
    path = _new_folder(tmp_path, "-".join(names).lower())
    limit = {"max_shard_size": "100KB"} if sharded else {}
    model.save_pretrained(path, **limit)
    if spelling == "old":
        _respell(path / "config.json")
    if with_tokenizer:
        write_tokenizer(path)
    return path


def load_reference(path: Path, *, dtype: str = "float32") -> PreTrainedModel:
    """transformers' own model of a checkpoint, in evaluation mode, with its plain attention."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return model.eval()


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE of VOCAB_SIZE tokens with a chat template, as transformers would save it."""
    small_tokenizer().save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


@functools.cache
def small_tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", BOS_ID)]
    )
    return tokenizer


def _new_folder(parent: Path, name: str) -> Path:
    """A second checkpoint of the same name in one test gets a number."""
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            path.mkdir(parents=True)
            return path
    raise AssertionError(f"too many checkpoints in {parent}")


def _randomize(model: PreTrainedModel) -> None:
    """Weights large enough that logits differ by whole units: near ties would make greedy comparisons a coin toss.

    Norm weights and biases are random too, so that a norm or a bias in the wrong place shows.
    """
    import torch

    is_gemma = type(model).__name__.startswith("Gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                is_norm = name.endswith("norm.weight") or "layernorm" in name
                center = 1.0 if is_norm and not is_gemma else 0.0
                if is_gemma and name == "model.norm.weight":
                    center = 2.0  # its embeddings are the head, and they are small
                parameter.normal_(center, 0.2)
            elif "embed_tokens" in name:
                # Small beside what the layers add: a tied head would otherwise repeat the last token for ever.
                parameter.normal_(0.0, 0.12 if is_gemma else 0.25)
            else:
                parameter.normal_(0.0, (3.0 if "lm_head" in name else 1.2) / math.sqrt(parameter.shape[1]))


def _respell(file: Path) -> None:
    """The same config as transformers before version 5 wrote it."""
    config = json.loads(file.read_text())
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    file.write_text(json.dumps(config, indent=2))
