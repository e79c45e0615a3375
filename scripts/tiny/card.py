"""The model card of pelton-tiny, made from what training and measuring recorded."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from tiny.model import TinyConfig


def model_card(
    config: TinyConfig, metrics: dict[str, Any], results: dict[str, dict[str, Any]], *, best_step: int, sources: Path
) -> str:
    """Markdown of README.md. `results` holds `valid` and `heldout` as `training.measures` returns them."""
    run = metrics["runs"][metrics["best_run"]]
    sections = (
        _head(config, metrics),
        _data_section(metrics["data"], sources, run["settings"]["framed_share"]),
        _training_section(metrics, run, best_step),
        _quality_section(config, results),
    )
    return "\n".join(sections)


def _head(config: TinyConfig, metrics: dict[str, Any]) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: code
tags: [python, llama]
---

# pelton-tiny

A small Llama-architecture model that completes Python, shipped inside Pelton so that every command works, and can be
tested, without a download. It knows the style of Python's standard library and little else: it writes plausible code,
not correct code, and it does not follow instructions.

| | |
|---|---|
| parameters | {metrics["model"]["num_parameters"]:,} (embedding and head shared) |
| layers, hidden, MLP | {config.num_hidden_layers}, {config.hidden_size}, {config.intermediate_size} |
| heads | {config.num_attention_heads} query, {config.num_key_value_heads} key-value, of {config.head_dim} |
| context | {config.max_position_embeddings:,} tokens |
| tokenizer | byte-level BPE, {config.vocab_size:,} tokens |
| weights | bf16 |
| chat frame | 4 tokens: `<\\|endoftext\\|><\\|user\\|>` message `<\\|end\\|><\\|assistant\\|>` |

A chat's user message is the beginning of a piece of Python; the answer continues it, newline included.
"""


def _data_section(data: dict[str, Any], sources: Path, framed_share: float) -> str:
    with sources.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    num_files = Counter(row["licence"] for row in rows)
    num_bytes: Counter[str] = Counter()
    for row in rows:
        num_bytes[row["licence"]] += int(row["bytes"])
    table = "\n".join(f"| {name} | {count:,} | {num_bytes[name]:,} |" for name, count in num_files.most_common())
    sizes, counts, tokens = data["num_bytes"], data["num_files"], data["num_tokens"]
    return f"""## Data

The standard library of CPython {data["python"]}, its tests included ({sum(counts.values()):,} files). Left out:
generated tables, codec tables, sources that do not parse, vendored wheels, exact and near duplicates. Files are split
by a hash of their path: train {counts["train"]:,} files ({sizes["train"]:,} bytes, {tokens["stream"]:,} tokens),
validation {counts["valid"]} ({sizes["valid"]:,} bytes), held out {counts["heldout"]} ({sizes["heldout"]:,} bytes).
Beside whole files, {framed_share:.0%} of the training rows hold functions and classes of the train files cut in two,
most of them in the chat frame ({data["num_framed_samples"]:,} samples).

### Licence of the data

| licence named in the file, or of the distribution | files | bytes |
|---|---|---|
{table}

Copyright (c) 2001-2023 Python Software Foundation and the authors named in the files. The list of files, with the
licence and hash of each, is `data/tiny-sources.csv` in Pelton's repository.
"""


def _training_section(metrics: dict[str, Any], run: dict[str, Any], best_step: int) -> str:
    settings = run["settings"]
    batch_tokens = settings["batch_rows"] * settings["window_tokens"]
    optimizer = f"AdamW, peak rate {settings['peak_lr']}, {settings['warmup_steps']} warm-up steps, cosine, clip 1.0"
    dropout, weight_decay = settings["dropout"], settings["weight_decay"]
    return f"""## Training

| | |
|---|---|
| steps | {run["num_steps"]:,} of {batch_tokens:,} tokens; shipped: step {best_step:,}, of the lowest validation loss |
| tokens | {run["num_tokens"]:,} ({run["num_epochs"]} passes over the whole train files) |
| optimizer | {optimizer} |
| regularization | dropout {dropout} on embeddings and residual branches, weight decay {weight_decay} |
| hardware | {metrics["device"]}, {run["wall_s"]:,.0f} s, torch {metrics["torch"]} |

`scripts/train_tiny.py` makes all of it: `data`, `tokenizer`, `train`, `export`.
"""


def _quality_section(config: TinyConfig, results: dict[str, dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {title} | {results[split]['num_tokens']:,} | {results[split]['perplexity_per_token']:.3f} "
        f"| {results[split]['bits_per_byte']:.4f} |"
        for split, title in (("heldout", "held out (`data/heldout-python.txt`)"), ("valid", "validation"))
    )
    return f"""## Held-out quality

| text | tokens | perplexity per token | bits per byte |
|---|---|---|---|
{rows}

Measured in float32 from the shipped bf16 weights: the text is encoded whole, cut into windows of
{config.max_position_embeddings:,} tokens that do not overlap, each predicted after one `<|endoftext|>`. The held-out
files chose nothing: the checkpoint was picked on the validation files.
"""
