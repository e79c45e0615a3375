"""`pelton build`: writes an engine directory, whole or not at all."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pelton.build.layout import default_tuning, engine_ledger, gpu_architecture, resolve_kv_dtype
from pelton.build.limits import resolve_limits
from pelton.config import BuildConfig, ParallelConfig, to_dict
from pelton.errors import ConfigError
from pelton.manifest import (
    LEDGER_NAME,
    MANIFEST_NAME,
    TOKENIZER_DIR,
    TUNING_NAME,
    Manifest,
    created_now,
    is_engine_dir,
    pelton_version,
    weights_name,
    write_manifest,
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions(BuildConfig):
    """Options of `pelton build`."""

    model: str
    """Hugging Face id, checkpoint directory, output of `pelton convert`, or pelton-tiny."""
    output: str
    """Engine directory to write; must be new, empty, or an engine that is to be replaced."""
    tp_size: int = 1
    """Ranks that share each layer."""
    pp_size: int = 1
    """Stages of consecutive layers."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the engine will run on."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    json: bool = False
    """Print the result as JSON."""


def build(source: Path, out: Path, options: BuildConfig | None = None, *, parallel: ParallelConfig | None = None,
          device: Literal["cpu", "cuda"] = "cpu", source_name: str | None = None, revision: str | None = None,
          show_progress: bool = False, remedy: str = "") -> Manifest:
    """Writes the engine directory of a checkpoint. An engine at `out` is replaced once the new one is whole.

    Weights go tensor by tensor: memory stays near the largest single tensor.

    Args:
        source: a Hugging Face checkpoint, or an output of `pelton convert`.
        parallel: how to split; none: one rank, or as the converted checkpoint is split.
        source_name: how the model was named, for the record; none: the absolute path.
        remedy: ends the message of an output folder that cannot be written.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ConfigError: an option does not fit the model, or the output may not be written.
        CapacityError: the disk is too small.
    """
    from pelton.build.inputs import input_bytes, open_input
    from pelton.checkpoint.output import check_replaceable, staged_output
    from pelton.checkpoint.progress import bytes_bar
    from pelton.hashing import hash_file

    if is_engine_dir(source):
        raise ConfigError(f"model: {source} is an engine already; build reads checkpoints")
    check_replaceable(out.resolve(), marker=MANIFEST_NAME)
    options = options or BuildConfig()
    options = BuildConfig(**{field.name: getattr(options, field.name) for field in fields(BuildConfig)})
    opened = open_input(source, options.dtype, parallel)
    limits, gpu = resolve_limits(options, opened.config), gpu_architecture(device)
    num_bytes = input_bytes(opened)
    with staged_output(out, marker=MANIFEST_NAME, num_bytes=num_bytes, remedy=remedy) as staging:
        (staging / TOKENIZER_DIR).mkdir()
        opened.copy_tokenizer(staging / TOKENIZER_DIR)
        names = [weights_name(rank) for rank in range(opened.parallel.world_size)]
        with bytes_bar("building", num_bytes, is_shown=show_progress) as advance:
            opened.write_weights([staging / name for name in names], advance)
        _write_json(staging / TUNING_NAME, default_tuning(gpu))
        ledger = engine_ledger(opened.config, options, opened.parallel, dtype=opened.dtype, gpu=gpu)
        _write_json(staging / LEDGER_NAME, ledger.to_json())
        written = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        manifest = Manifest(
            pelton_version=pelton_version(), created_at=created_now(), source=source_name or str(source.resolve()),
            revision=revision, options=options, model=opened.config, parallel=opened.parallel, limits=limits,
            dtype=opened.dtype, kv_cache_dtype=resolve_kv_dtype(options, opened.dtype), gpu=gpu, is_tuned=False,
            files={name: hash_file(staging / name) for name in written},
        )
        write_manifest(staging, manifest)
    return manifest


def run_build(options: BuildOptions) -> int:
    """The command."""
    from pelton.checkpoint.hub import absolute_source, resolve_model

    start = time.perf_counter()
    out = Path(options.output)
    manifest = build(resolve_model(options.model, revision=options.revision), out, options,
                     parallel=ParallelConfig(tp_size=options.tp_size, pp_size=options.pp_size), device=options.device,
                     source_name=absolute_source(options.model), revision=options.revision,
                     show_progress=not options.json)
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps(_summary(manifest, out, seconds)))
        return 0
    num_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    tuned = "tuned" if manifest.is_tuned else "untuned (no GPU)" if manifest.gpu == "cpu" else "untuned"
    print(f"{out}: {manifest.model.architecture} for {manifest.gpu}, {manifest.dtype}, {num_bytes / 1e9:.3f} GB, "
          f"{tuned}; {seconds:.1f} s")
    return 0


def _summary(manifest: Manifest, out: Path, seconds: float) -> dict[str, Any]:
    return {"engine": str(out), "source": manifest.source, "gpu": manifest.gpu, "is_tuned": manifest.is_tuned,
            "dtype": manifest.dtype, "limits": to_dict(manifest.limits), "parallel": to_dict(manifest.parallel),
            "num_bytes": sum(entry.size_bytes for entry in manifest.files.values()), "seconds": round(seconds, 3)}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
