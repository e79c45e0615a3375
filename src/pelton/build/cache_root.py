"""Where Pelton keeps what it can make again: engines of models, hashes of files, measurements of kernels."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "PELTON_CACHE"


def cache_root() -> Path:
    """PELTON_CACHE, else ~/.cache/pelton."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/pelton").expanduser().absolute()
