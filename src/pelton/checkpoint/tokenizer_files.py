"""The files of a tokenizer, copied from a checkpoint into what we write. Knows no tensors and no tokens.

Everything online reads tokenizer.json alone. Checkpoints that have only SentencePiece's tokenizer.model (or a
vocab.json with merges.txt) are converted once, here, by transformers where it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pelton.checkpoint.hf_config import read_json_object
from pelton.errors import CheckpointError

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
OPTIONAL_NAMES = (SETTINGS_NAME, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                  "chat_template.json", "generation_config.json")
CONVERTIBLE = (("tokenizer.model",), ("vocab.json", "merges.txt"))

# Only local files, and no code that came with the checkpoint.
_CONVERT = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
if not tokenizer.is_fast:
    raise SystemExit("transformers knows no conversion for " + type(tokenizer).__name__)
tokenizer.save_pretrained(sys.argv[2])
"""


def copy_tokenizer(model_dir: Path, target: Path) -> list[str]:
    """Copies tokenizer, chat template and generation config into a folder that exists; converts where needed.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or it cannot be converted here.
    """
    if (model_dir / TOKENIZER_NAME).exists():
        read_json_object(model_dir / TOKENIZER_NAME)
        _copy(model_dir / TOKENIZER_NAME, target)
    else:
        _convert(model_dir, target)
    for name in OPTIONAL_NAMES:
        if (model_dir / name).exists():
            _copy(model_dir / name, target)
    return sorted(path.name for path in target.iterdir())


def tokenizer_files(model_dir: Path) -> list[Path]:
    """The files `copy_tokenizer` would read, for keys over content."""
    names = (TOKENIZER_NAME, *OPTIONAL_NAMES, *(name for group in CONVERTIBLE for name in group))
    return [model_dir / name for name in names if (model_dir / name).exists()]


def _copy(file: Path, target: Path) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    (target / file.name).write_bytes(content)


def _convert(model_dir: Path, target: Path) -> None:
    """Runs transformers in a process of its own: its import costs seconds and hundreds of megabytes."""
    found = next((group for group in CONVERTIBLE if all((model_dir / name).exists() for name in group)), None)
    if found is None:
        raise CheckpointError(f"{model_dir}: no tokenizer; looked for {TOKENIZER_NAME}, tokenizer.model, and "
                              "vocab.json with merges.txt. Copy tokenizer.json there from the model's page")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _CONVERT, str(model_dir.resolve()), folder]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not Path(folder, TOKENIZER_NAME).exists():
            raise CheckpointError(f"{model_dir / found[0]}: no {TOKENIZER_NAME} beside it, and converting it failed "
                                  f"({_reason(done.stderr)}); pip install transformers sentencepiece protobuf, or copy "
                                  f"{TOKENIZER_NAME} there from the model's page")
        for name in (TOKENIZER_NAME, SETTINGS_NAME):
            if Path(folder, name).exists():
                shutil.copyfile(Path(folder, name), target / name)


def _reason(stderr: str) -> str:
    """The line of a traceback that says what was wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Z]\w*Error: ", line)]
    return (errors or lines or ["no reason given"])[-1]
