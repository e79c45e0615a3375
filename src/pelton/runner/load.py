"""Opens an engine directory: refuses what cannot run here, decides the memory, then brings in checked weights.

On a GPU the weights come while the runner is being made, where its making does not depend on their values.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pelton.config import ExecutorConfig, ModelConfig
from pelton.errors import ConfigError, EngineError
from pelton.host import available_cpus, count_cores, read_text
from pelton.kernels.registry import load_ops
from pelton.ledger import Ledger
from pelton.manifest import (
    Limits,
    Manifest,
    check_gpu,
    check_sizes,
    read_manifest,
    verify_files,
    weights_name,
)
from pelton.runner.limits import narrow
from pelton.runner.memory import plan_memory
from pelton.runner.upload import PAD_PREFIX, WeightUpload

if TYPE_CHECKING:
    from pelton.runner.tuning import KernelUse

_log = logging.getLogger("pelton.runner")


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """All that a runner is made from."""

    manifest: Manifest
    limits: Limits
    ledger: Ledger
    weights: dict[str, torch.Tensor]
    """Canonical name -> tensor on `device`."""
    upload: WeightUpload | None
    """What still fills them; none on a CPU."""
    device: torch.device
    num_threads: int
    kernels: KernelUse | None
    """Where compiled kernels come from; none on a CPU."""

    def wait(self) -> None:
        """Until the weights have their values.

        Raises:
            EngineError: their file is damaged.
        """
        if self.upload is not None:
            self.upload.wait()


def load_engine(engine_dir: Path, config: ExecutorConfig) -> LoadedEngine:
    """Reads an engine directory. The weights count once its `wait` has returned.

    Raises:
        EngineError: it is damaged, of another format, or for another device or number of ranks.
        ConfigError: the configuration asks for more than was built.
        CapacityError: it does not fit into memory.
    """
    manifest = read_manifest(engine_dir)
    device = _device(engine_dir, manifest, config)
    _check_ranks(engine_dir, manifest)
    limits = narrow(manifest.limits, config)
    check_sizes(engine_dir, manifest)
    ledger = plan_memory(
        manifest.model, limits, config.kv_cache_config, weights_bytes=manifest.files[weights_name(0)].size_bytes,
        dtype=manifest.dtype, kv_dtype=manifest.kv_cache_dtype, device=device)
    _log.info("memory in bytes: %s", "; ".join(" ".join(line.split()) for line in ledger.to_lines()))
    kernels = upload = None
    if device.type == "cuda":
        from pelton.runner.tuning import use_tuning

        kernels = use_tuning(engine_dir, manifest, device)
        upload = WeightUpload(engine_dir, manifest, weights_name(0), device)
        if reads_weights(manifest.model, manifest.dtype, device):
            upload.wait()
    weights = map_weights(engine_dir, manifest) if upload is None else dict(upload.tensors)
    return LoadedEngine(manifest=manifest, limits=limits, ledger=ledger, device=device, weights=weights, upload=upload,
                        kernels=kernels, num_threads=config.num_threads or default_num_threads())


def reads_weights(model: ModelConfig, dtype: str, device: torch.device) -> bool:
    """Whether a decoder that is being made computes something from its weights: norms with an offset, other layouts."""
    return model.norm_weight_offset != 0 or load_ops(device.type).linear.is_relaid(getattr(torch, dtype))


def map_weights(engine_dir: Path, manifest: Manifest, *, rank: int = 0) -> dict[str, torch.Tensor]:
    """The weights of one rank for a CPU, checked by parallel threads against the manifest's hashes and then mapped: the
    tensors' memory is the file's pages, shared with other processes and not to be written to.

    Raises:
        EngineError: the file is missing or damaged.
    """
    from safetensors import safe_open

    name = weights_name(rank)
    verify_files(engine_dir, manifest, names=[name])
    with safe_open(str(engine_dir / name), framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys() if not key.startswith(PAD_PREFIX)}  # noqa: SIM118


def default_num_threads() -> int:
    """One thread per physical core this process may use; less where a control group grants less time."""
    num_cores = count_cores(read_text("/proc/cpuinfo"), len(available_cpus()))
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        num_cores = min(num_cores, max(1, -(-int(quota) // int(period))))
    return num_cores


def choose_device(asked: str) -> torch.device:
    """The device to run on.

    Args:
        asked: "cpu", "cuda" or "auto", which takes a GPU that is there.

    Raises:
        ConfigError: a GPU is asked for and torch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise ConfigError("device: cuda was asked for, but torch finds no GPU; `pelton doctor` says why")
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu and asked != "cpu" else torch.device("cpu")


def _device(engine_dir: Path, manifest: Manifest, config: ExecutorConfig) -> torch.device:
    """Where the engine will run: on a GPU that is there, unless the configuration insists on something else."""
    device = choose_device(config.device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        check_gpu(engine_dir, manifest, f"sm_{major}{minor}")
    else:
        check_gpu(engine_dir, manifest, "cpu")
    return device


def _check_ranks(engine_dir: Path, manifest: Manifest) -> None:
    parallel = manifest.parallel
    if parallel.world_size > 1:
        raise EngineError(f"{engine_dir}: split over {parallel.world_size} ranks (tp_size {parallel.tp_size}, pp_size "
                          f"{parallel.pp_size}), and a runner is one rank; build from the model that {manifest.source} "
                          f"was converted from: pelton build MODEL -o {engine_dir}")
