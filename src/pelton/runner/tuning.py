"""Brings an engine's measured choices and compiled kernels into use, where they were made for the GPU that is here."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from pelton.config import from_dict
from pelton.errors import ConfigError
from pelton.kernels.compiled import Counts, counts, use_folder
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear.measured import Setting, read_measurements
from pelton.kernels.linear.triton import use_measurements
from pelton.manifest import KERNELS_DIR, TUNING_NAME, Manifest, num_kernels, verify_files

_log = logging.getLogger("pelton.runner")


@dataclass
class KernelUse:
    """Where the kernels that a runner loads come from."""

    before: Counts
    """Of the process, when the runner began to load."""
    setting: dict[str, str]
    """What tuning.json says of where it was made; empty for an untuned engine."""
    num_kept: int
    """Compiled kernels in the engine directory."""

    def report(self) -> None:
        """Says once the runner is ready how many kernels had to be compiled, if the engine was to bring them all."""
        since = counts.since(self.before)
        told = (f"kernels: {since.num_kept} of the engine's {self.num_kept}, {since.num_cached} from the user's "
                f"cache, {since.num_compiled} compiled")
        if self.num_kept and since.num_compiled:
            made = f"made with torch {self.setting.get('torch')} and Triton {self.setting.get('triton')}"
            _log.warning("%s; the engine's were %s for these limits, and this is torch %s", told, made,
                         torch.__version__)
        else:
            _log.info("%s", told)


def use_tuning(engine_dir: Path, manifest: Manifest, device: torch.device) -> KernelUse:
    """Has products run as measured on this type of GPU, and kernels looked up in the engine before they are compiled.

    Raises:
        EngineError: tuning.json or a compiled kernel is damaged.
    """
    prefix = f"{KERNELS_DIR}/"
    verify_files(engine_dir, manifest, names=[name for name in manifest.files
                                              if name == TUNING_NAME or name.startswith(prefix)])
    tuning = json.loads((engine_dir / TUNING_NAME).read_bytes()) if TUNING_NAME in manifest.files else {}
    use_measurements(_usable(engine_dir, tuning, device))
    folder = engine_dir / KERNELS_DIR if num_kernels(manifest) else None
    threading.Thread(target=_read_triton_key, name="triton-key", daemon=True).start()
    return KernelUse(use_folder(folder), tuning, num_kernels(manifest))


def _usable(engine_dir: Path, tuning: dict, device: torch.device) -> list:
    """The measurements of a tuning.json that count here."""
    if not tuning.get("is_tuned"):
        _log.info("%s: untuned (%s); products run as built in", engine_dir, tuning.get("reason", "no measurements"))
        return []
    try:
        made = from_dict(Setting, {name: tuning.get(name) for name in Setting.__dataclass_fields__})
        here = Setting.here(torch.cuda.get_device_name(device), gpu_features(device).capability)
        reason = made.why_not_here(here)
        if reason is None:
            return read_measurements(tuning["choices"])
    except (ConfigError, KeyError, TypeError) as error:
        reason = str(error)
    _log.warning("%s: its tuning is not used, products run as built in: %s; `pelton build` measures again", engine_dir,
                 reason)
    return []


def _read_triton_key() -> None:
    """Triton hashes its own files, some 500 MB, before it first looks a kernel up; here beside the upload."""
    from triton.runtime.cache import triton_key

    triton_key()
