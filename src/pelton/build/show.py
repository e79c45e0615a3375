"""`pelton engine show`: what is inside an engine directory, for which GPU, what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.build.tuning_report import print_tuning
from pelton.checkpoint.hf_config import read_json_object
from pelton.config import to_dict
from pelton.ledger import Ledger
from pelton.manifest import LEDGER_NAME, TUNING_NAME, Manifest, check_sizes, num_kernels, read_manifest, verify_files


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `pelton engine show`."""

    engine: str
    """Engine directory."""
    verify: bool = False
    """Read all files and compare them with the recorded hashes."""
    json: bool = False
    """Print everything as JSON."""


def run_show(options: ShowOptions) -> int:
    """The command.

    Raises:
        EngineError: the directory is refused.
    """
    engine_dir = Path(options.engine)
    manifest = read_manifest(engine_dir)
    check_sizes(engine_dir, manifest)
    if options.verify:
        verify_files(engine_dir, manifest)
    ledger = Ledger.from_json(read_json_object(engine_dir / LEDGER_NAME), where=LEDGER_NAME)
    tuning = read_json_object(engine_dir / TUNING_NAME)
    if options.json:
        print(json.dumps(describe(manifest, ledger, tuning), indent=1))
        return 0
    print(f"{engine_dir}")
    for title, rows in _sections(manifest, ledger, tuning, is_verified=options.verify).items():
        print(f"\n{title}")
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")
    if tuning.get("choices"):
        print()
        print_tuning(tuning)
    return 0


def describe(manifest: Manifest, ledger: Ledger, tuning: dict[str, Any]) -> dict[str, Any]:
    """Everything in plain JSON types; of each file its size alone."""
    content = to_dict(manifest)
    content["files"] = {name: entry.size_bytes for name, entry in manifest.files.items()}
    return {**content, "ledger": ledger.to_json(), "tuning": tuning}


def _sections(manifest: Manifest, ledger: Ledger, tuning: dict[str, Any], *,
              is_verified: bool) -> dict[str, dict[str, str]]:
    model, parallel, limits = manifest.model, manifest.parallel, manifest.limits
    revision = f" at {manifest.revision}" if manifest.revision else ""
    num_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    window = f", sliding window {model.sliding_window}" if model.sliding_window and model.layer_kinds else ""
    return {
        "model": {
            "architecture": model.architecture,
            "source": f"{manifest.source}{revision}",
            "shape": f"{model.num_layers} layers, hidden {model.hidden_size}, MLP {model.intermediate_size}, "
                     f"vocabulary {model.vocab_size:,}",
            "attention": f"{model.num_heads} heads over {model.num_kv_heads} KV heads of {model.head_dim}{window}",
            "context": f"{model.context_len:,} tokens, rope {model.rope.kind}",
        },
        "engine": {
            "built": f"{manifest.created_at} by Pelton {manifest.pelton_version}, format {manifest.format_version}",
            "for": f"{manifest.gpu_name or manifest.gpu}, {parallel.world_size} rank(s): tp_size {parallel.tp_size}, "
                   f"pp_size {parallel.pp_size}",
            "types": f"weights {manifest.dtype}, KV cache {manifest.kv_cache_dtype}",
            "tuning": _tuning_text(manifest, tuning),
            "files": f"{len(manifest.files)}, {num_bytes / 1e9:.3f} GB, "
                     f"{'hashes verified' if is_verified else 'sizes checked (--verify reads them)'}",
        },
        "limits": {name: f"{value:,}" for name, value in to_dict(limits).items()},
        "memory of one rank on the machine that built it": {
            "weights": _mib(ledger.weights_bytes),
            "KV cache": f"{_mib(ledger.kv_blocks_bytes)}: {ledger.num_blocks:,} blocks of "
                        f"{ledger.block_bytes / 2**20:.3f} MiB, {ledger.kv_tokens:,} tokens",
            "activations": _mib(ledger.activations_bytes),
            "graphs": _mib(ledger.graphs_bytes),
            "workspace": _mib(ledger.workspace_bytes),
            "sampling state": _mib(ledger.sampling_state_bytes),
            "reserve": _mib(ledger.reserve_bytes),
        },
    }


def _tuning_text(manifest: Manifest, tuning: dict[str, Any]) -> str:
    choices = tuning.get("choices", [])
    if manifest.is_tuned:
        return (f"{len(choices)} kernel choices measured on {tuning['gpu_name']}, {num_kernels(manifest)} compiled "
                "kernels kept")
    return f"untuned ({tuning.get('reason', 'no measurements')}), built-in kernel choices"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
