"""Tokenizer files are copied as they are, or converted by transformers in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import CHAT_TEMPLATE, small_tokenizer, write_tokenizer
from tokenizers import Tokenizer

from pelton.checkpoint.tokenizer_files import copy_tokenizer, tokenizer_files
from pelton.errors import CheckpointError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    write_tokenizer(path)
    return path


def test_files_are_copied(model: Path, target: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text("{}")
    (model / "modeling.py").write_text("")
    names = copy_tokenizer(model, target)
    assert names == ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (target / name).read_bytes() == (model / name).read_bytes()
    assert {path.name for path in tokenizer_files(model)} == set(names)


def test_no_tokenizer(tmp_path: Path, target: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer; looked for tokenizer.json, tokenizer.model, and vocab"):
        copy_tokenizer(tmp_path, target)


def test_damaged_tokenizer(model: Path, target: Path) -> None:
    (model / "tokenizer.json").write_text('{"version"')
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not valid JSON"):
        copy_tokenizer(model, target)


def test_damaged_tokenizer_model(tmp_path: Path, target: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"tokenizer.model: no tokenizer.json .*pip install") as caught:
        copy_tokenizer(tmp_path, target)
    assert "\n" not in str(caught.value)
    assert list(target.iterdir()) == []


def test_conversion_without_transformers(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    fake = tmp_path / "path" / "transformers"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'transformers'\")")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    with pytest.raises(CheckpointError, match=r"No module named 'transformers'.*pip install transformers"):
        copy_tokenizer(tmp_path, target)


def test_vocab_and_merges_are_converted(model: Path, target: Path) -> None:
    """A byte-level BPE in its older form encodes the same after conversion."""
    expected = small_tokenizer()
    content = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (model / "tokenizer.json").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.update(tokenizer_class="GPT2Tokenizer", unk_token="<|eos|>")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    copy_tokenizer(model, target)
    text = "def fibonacci(n):\n    return n  # naïve ✓"
    converted = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert converted.encode(text, add_special_tokens=False).ids == expected.encode(text, add_special_tokens=False).ids
    assert json.loads((target / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE


def test_tokenizer_model_is_converted(tmp_path: Path, target: Path) -> None:
    """SentencePiece's own encoding, after conversion, where sentencepiece is installed."""
    code = "import sentencepiece, google.protobuf"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ, check=False).returncode:
        pytest.skip("sentencepiece and protobuf are not installed")
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text(Path(__file__).read_text())
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=420,
                                             model_type="bpe", byte_fallback=True, minloglevel=2)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    copy_tokenizer(tmp_path, target)
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    converted = Tokenizer.from_file(str(target / "tokenizer.json"))
    line = "SentencePiece's own encoding of naïve text ✓"
    assert converted.encode(line, add_special_tokens=False).ids == original.encode(line)
