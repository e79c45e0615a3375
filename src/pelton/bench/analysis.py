"""What a result is held against besides itself (targets, a price, the hardware's limits), and what is watched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pelton.bench.goodput import parse_goodput
from pelton.bench.load.options import require
from pelton.bench.results import Analysis, HardwareFacts
from pelton.physics import KV_DTYPES, WEIGHT_FORMATS, find_hardware


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Targets, price and limits; a stored result can be given others."""

    goodput: str | None = None
    """Latency targets of a good request in milliseconds, such as ttft:500,tpot:50, or the name of one of MLPerf's
    limits, such as mlperf-llama3.1-8b-interactive."""
    price_per_hour: float | None = None
    """What the server's machine costs an hour, in any currency, for the cost of a million tokens."""
    gpu: str | None = None
    """The server's GPU, as pelton plan takes it: figures beyond its limits are failures; none: as a Pelton server
    says, else unknown."""
    model_config: str | None = None
    """Directory with the served model's config.json, or an engine directory; goes with gpu."""
    num_gpus: int = 1
    """GPUs that share one replica of the model; goes with gpu."""
    weight_dtype: str = "auto"
    """Type the server keeps the weights in; auto: the model's own; goes with gpu."""
    kv_cache_dtype: str = "auto"
    """Type the server keeps keys and values in; auto: the model's own; goes with gpu."""
    strict: bool = False
    """End with status 3 when the audit fails a cell."""

    def __post_init__(self) -> None:
        price = self.price_per_hour
        require(price is None or (math.isfinite(price) and price > 0), "price_per_hour", price, "above 0")
        require((self.gpu is None) == (self.model_config is None), "gpu", self.gpu,
                "given together with model_config")
        require(self.num_gpus >= 1, "num_gpus", self.num_gpus, "at least 1")
        require(self.weight_dtype in ("auto", *WEIGHT_FORMATS), "weight_dtype", self.weight_dtype,
                f"auto or one of {', '.join(WEIGHT_FORMATS)}")
        require(self.kv_cache_dtype in KV_DTYPES, "kv_cache_dtype", self.kv_cache_dtype,
                f"one of {', '.join(KV_DTYPES)}")
        if self.goodput is not None:
            parse_goodput(self.goodput)

    def make(self, known: Analysis | None = None) -> Analysis:
        """What was given, and for what was not, what is known already: from the server, or from a stored result.

        Raises:
            PeltonError: a GPU or a model configuration that cannot be read.
        """
        known = Analysis() if known is None else known
        return Analysis(
            goodput=known.goodput if self.goodput is None else parse_goodput(self.goodput),
            price_per_hour=known.price_per_hour if self.price_per_hour is None else self.price_per_hour,
            hardware=known.hardware if self.gpu is None else self._hardware())

    def _hardware(self) -> HardwareFacts:
        from pelton.checkpoint.hf_config import load_model_config

        model = load_model_config(Path(self.model_config).expanduser())
        return HardwareFacts(gpu=find_hardware(self.gpu).name if self.gpu != "cpu" else "cpu", num_gpus=self.num_gpus,
                             model=msgspec.json.decode(msgspec.json.encode(model)),
                             weight_dtype=self.weight_dtype,
                             kv_cache_dtype=self.kv_cache_dtype, source="options")


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is watched beside the load."""

    watch_gpus: bool | None = None
    """Read power, use and memory of this machine's GPUs; none: where the server runs on this machine."""
    gpu_indices: tuple[int, ...] = ()
    """GPUs to watch; none: all."""
    watch_server: bool = True
    """Read the server's own Prometheus metrics once a second, where it shows any."""
    metrics_url: str | None = None
    """Where they are; none: /metrics of the server's address."""

    def gpus_to_watch(self, host: str) -> tuple[int, ...] | None:
        """The indices for `Watch`; none: no GPUs."""
        is_local = host in ("localhost", "127.0.0.1", "::1")
        return self.gpu_indices if (is_local if self.watch_gpus is None else self.watch_gpus) else None

    def url_to_watch(self, server_url: str) -> str | None:
        if not self.watch_server:
            return None
        return self.metrics_url or f"{server_url.rstrip('/')}/metrics"
