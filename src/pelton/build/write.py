"""`pelton build`: writes an engine directory, whole or not at all."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelton.build.cache_root import cache_root
from pelton.build.layout import Device, Tuning, architecture, engine_ledger, find_gpu, resolve_kv_dtype, untuned
from pelton.build.limits import resolve_limits
from pelton.build.replaced import Replaced, weights_digest
from pelton.config import BuildConfig, ParallelConfig, to_dict
from pelton.errors import ConfigError
from pelton.host import Gpu
from pelton.ledger import Ledger
from pelton.manifest import (
    LEDGER_NAME,
    MANIFEST_NAME,
    TOKENIZER_DIR,
    TUNING_NAME,
    Limits,
    Manifest,
    created_now,
    is_engine_dir,
    num_kernels,
    pelton_version,
    weights_name,
    write_manifest,
)

if TYPE_CHECKING:
    from pelton.build.inputs import BuildInput
    from pelton.checkpoint.progress import Advance
    from pelton.hashing import FileEntry


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
    device: Device = "auto"
    """What the engine is built on and for; auto takes a GPU that is there. Built on a CPU it runs on a GPU untuned."""
    tuning: Tuning = "auto"
    """On a GPU: auto measures the kernels that are not known yet, again measures all, off none."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    json: bool = False
    """Print the result as JSON."""


def build(source: Path, out: Path, options: BuildConfig | None = None, *, parallel: ParallelConfig | None = None,
          device: Device = "cpu", tuning: Tuning = "auto", source_name: str | None = None,
          revision: str | None = None, show_progress: bool = False, remedy: str = "") -> Manifest:
    """Writes the engine directory of a checkpoint. An engine at `out` is replaced once the new one is whole.

    Weights go tensor by tensor: memory stays near the largest single tensor. On a GPU the kernels are measured and
    compiled meanwhile, in another process.

    Args:
        source: a Hugging Face checkpoint, or an output of `pelton convert`.
        parallel: how to split; none: one rank, or as the converted checkpoint is split.
        source_name: how the model was named, for the record; none: the absolute path.
        remedy: ends the message of an output folder that cannot be written.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ConfigError: an option does not fit the model, or the output may not be written.
        CapacityError: the disk or the GPU is too small. EngineDeadError: tuning died.
    """
    from pelton.build.inputs import input_bytes, open_input
    from pelton.checkpoint.output import check_replaceable, staged_output
    from pelton.hashing import hash_file

    if is_engine_dir(source):
        raise ConfigError(f"model: {source} is an engine already; build reads checkpoints")
    check_replaceable(out.resolve(), marker=MANIFEST_NAME)
    options = options or BuildConfig()
    options = BuildConfig(**{field.name: getattr(options, field.name) for field in fields(BuildConfig)})
    opened = open_input(source, options.dtype, parallel)
    limits, gpu = resolve_limits(options, opened.config), find_gpu(device)
    ledger = engine_ledger(opened.config, options, opened.parallel, dtype=opened.dtype, gpu=gpu)
    replaced, made_from = Replaced(out.resolve()), _made_from(opened)
    with staged_output(out, marker=MANIFEST_NAME, num_bytes=input_bytes(opened), remedy=remedy) as staging:
        (staging / TOKENIZER_DIR).mkdir()
        opened.copy_tokenizer(staging / TOKENIZER_DIR)
        content, files = _write_weights(staging, opened, limits, replaced, made_from, gpu=gpu, tuning=tuning,
                                        show_progress=show_progress)
        _write_json(staging / TUNING_NAME, content)
        _write_json(staging / LEDGER_NAME, ledger.to_json())
        written = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        manifest = Manifest(
            pelton_version=pelton_version(), created_at=created_now(), source=source_name or str(source.resolve()),
            revision=revision, made_from=made_from if made_from == _made_from(opened) else "", options=options,
            model=opened.config, parallel=opened.parallel, limits=limits, dtype=opened.dtype,
            kv_cache_dtype=resolve_kv_dtype(options, opened.dtype), gpu=architecture(gpu),
            gpu_name=gpu.name if gpu else "", is_tuned=content["is_tuned"],
            files={name: files.get(name) or hash_file(staging / name) for name in written},
        )
        write_manifest(staging, manifest)
    return manifest


def _made_from(opened: BuildInput) -> str:
    """Digest over all that the weights depend on, as it is now; empty where a file is gone."""
    try:
        return weights_digest(opened.weight_sources(), opened.dtype, opened.parallel)
    except OSError:
        return ""


def _write_weights(staging: Path, opened: BuildInput, limits: Limits, replaced: Replaced, made_from: str, *,
                   gpu: Gpu | None, tuning: Tuning, show_progress: bool) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    """Writes and hashes the weights, and rehearses the engine on the GPU meanwhile. What the engine that is replaced
    has already is taken from it.

    Returns:
        The content of tuning.json, and the weights' files.
    """
    from pelton.build.inputs import input_bytes
    from pelton.build.progress import build_bars
    from pelton.hashing import hash_file

    names = [weights_name(rank) for rank in range(opened.parallel.world_size)]

    def write(advance: Advance) -> dict[str, FileEntry]:
        if (files := replaced.link_weights(made_from, names, staging)) is not None:
            return files
        opened.write_weights([staging / name for name in names], advance)
        return {name: hash_file(staging / name) for name in names}

    is_tuned = gpu is not None and tuning != "off"
    with build_bars(input_bytes(opened), has_gpu=is_tuned, is_shown=show_progress) as (advance, on_news):
        if not is_tuned:
            return untuned(gpu), write(advance)
        from pelton.build.tune import Rehearser

        rehearser = Rehearser(staging, model=opened.config, limits=limits, dtype=opened.dtype,
                              parallel=opened.parallel, gpu=gpu, tuning=tuning, cache=cache_root(), on_news=on_news)
        if rehearser.digest and (content := replaced.copy_rehearsal(rehearser.digest, staging)) is not None:
            return content, write(advance)
        with rehearser:
            files = write(advance)
            content = rehearser.result()
    if rehearser.not_kept and show_progress:
        print(f"pelton: not all kernels are compiled into the engine: {rehearser.not_kept}", file=sys.stderr)
    return content, files


def run_build(options: BuildOptions) -> int:
    """The command."""
    from pelton.build.tuning_report import print_tuning
    from pelton.checkpoint.hub import absolute_source, resolve_model

    start = time.perf_counter()
    out = Path(options.output)
    manifest = build(resolve_model(options.model, revision=options.revision), out, options,
                     parallel=ParallelConfig(tp_size=options.tp_size, pp_size=options.pp_size), device=options.device,
                     tuning=options.tuning, source_name=absolute_source(options.model), revision=options.revision,
                     show_progress=not options.json)
    seconds = time.perf_counter() - start
    tuning = json.loads((out / TUNING_NAME).read_bytes())
    if options.json:
        print(json.dumps(_summary(manifest, out, seconds, tuning)))
        return 0
    print_tuning(tuning)
    ledger = Ledger.from_json(json.loads((out / LEDGER_NAME).read_bytes()), where=LEDGER_NAME)
    print(f"memory of {'one rank' if manifest.parallel.world_size > 1 else 'the engine'}, bytes:",
          *ledger.to_lines(), sep="\n  ")
    num_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{out}: {manifest.model.architecture} for {manifest.gpu_name or manifest.gpu}, {manifest.dtype}, "
          f"{num_bytes / 1e9:.3f} GB, {_tuning_text(manifest, tuning)}; {seconds:.1f} s")
    return 0


def _tuning_text(manifest: Manifest, tuning: dict[str, Any]) -> str:
    if not manifest.is_tuned:
        return f"untuned ({tuning['reason']})"
    return f"{len(tuning['choices'])} kernel choices measured, {num_kernels(manifest)} compiled kernels kept"


def _summary(manifest: Manifest, out: Path, seconds: float, tuning: dict[str, Any]) -> dict[str, Any]:
    return {"engine": str(out), "source": manifest.source, "gpu": manifest.gpu, "gpu_name": manifest.gpu_name,
            "is_tuned": manifest.is_tuned, "tuning": tuning, "num_kernels": num_kernels(manifest),
            "dtype": manifest.dtype, "limits": to_dict(manifest.limits), "parallel": to_dict(manifest.parallel),
            "num_bytes": sum(entry.size_bytes for entry in manifest.files.values()), "seconds": round(seconds, 3)}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
