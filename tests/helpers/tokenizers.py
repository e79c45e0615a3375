"""Small tokenizers of each family that models use, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = """The quick brown fox jumps over the lazy dog. def fibonacci(n): return n if n < 2 else fibonacci(n - 1)
Größe, naïve café, Ελληνικά, кириллица; 你好世界 and 😀😃😄 with   spaces\tand tabs. <0x41> is not a byte."""
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
            "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def byte_level(*, add_bos: bool = True) -> Tokenizer:
    """GPT-2's family (Llama 3, Qwen): BPE over bytes, 420 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False, special_tokens=SPECIALS)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """SentencePiece's family with byte tokens: Llama 2 and Mistral, or Gemma without the stripped first space."""
    words = ["▁", *sorted({c for c in TEXT if c.isascii() and c.isprintable() and c != " "}), "é", "你"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "f"), ("o", "x"), ("▁f", "ox"), ("▁", "▁")]
    pieces = ["<unk>", *SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *words, *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if strip else replace
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(content=" ", left=1, right=0)] if strip else parts)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def metaspace() -> Tokenizer:
    """SentencePiece's family as newer conversions write it: pre-tokenizer and decoder are both Metaspace."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>", *SPECIALS])
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


FAMILIES = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace,
            "byte_fallback_unstripped": lambda: byte_fallback(strip=False)}


def write_tokenizer(folder: Path, backend: Tokenizer | None = None, *, template: str | None = TEMPLATE,
                    **config: object) -> Path:
    """Writes the files a model's tokenizer consists of and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
