"""What the benchmark scripts share: random checkpoints of public shapes, the machine's description, one JSON line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

QWEN2_0_5B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}
"""Shape of Qwen/Qwen2-0.5B, from its published config.json."""


def make_checkpoint(folder: Path, shape: dict[str, Any] = QWEN2_0_5B, *, seed: int = 0) -> Path:
    """Writes a Qwen2 checkpoint with random bf16 weights (normal, standard deviation 0.02) once; returns its folder.

    The tokenizer is pelton-tiny's: its ids are a subset of the model's, so that the HTTP server can run.
    """
    import shutil

    import torch
    import transformers

    from pelton.checkpoint.hub import resolve_model

    if (folder / "config.json").exists():
        return folder
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    shape = dict(shape)
    config = transformers.Qwen2Config(**{k: v for k, v in shape.items() if k != "rope_theta"}, dtype="bfloat16",
                                      rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
                                      bos_token_id=None, eos_token_id=None, pad_token_id=None)
    temporary = folder.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(temporary)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model("pelton-tiny") / name, temporary / name)
    temporary.rename(folder)
    return folder


def environment() -> dict[str, Any]:
    """Machine, commit and versions, so that a figure can be placed."""
    versions = {}
    for name in ("pelton", "torch", "transformers", "triton"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"cpu": _cpu_name(), "num_cpus": os.cpu_count(), "python": platform.python_version(), "versions": versions,
            "commit": _commit(), "command": " ".join(["python", *sys.argv])}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    """The commit that runs; PELTON_COMMIT names it where the code was copied without its repository."""
    if os.environ.get("PELTON_COMMIT"):
        return os.environ["PELTON_COMMIT"]
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "src", "benchmarks"], cwd=here,
                           capture_output=True, text=True)
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def print_json(record: dict[str, Any], output: str | None = None) -> None:
    """The result as one line on standard output, and indented in a file when one is named."""
    print(json.dumps(record), flush=True)
    if output:
        write_json(record, output)


def write_json(record: dict[str, Any], output: str) -> None:
    """The result indented in a file, whole or not at all."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.rename(path)
