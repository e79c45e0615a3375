"""What a result is held against, and what the audit says of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pelton.bench.results.record import Record


class HardwareFacts(Record, kw_only=True):
    """What serves and what is served, to hold figures against the hardware's limits."""

    gpu: str
    """As `pelton plan --gpu` takes it; cpu for the machine the benchmark runs on."""
    num_gpus: int = 1
    """That share one replica of the model (tensor parallelism)."""
    model: dict[str, Any]
    """`pelton.config.ModelConfig`, field by field."""
    weight_dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    source: Literal["options", "server"]
    """Who said so."""


class Analysis(Record, kw_only=True):
    """What is computed from the records besides what was measured; a stored result can be given another."""

    goodput: dict[str, float] = msgspec.field(default_factory=dict)
    """Latency metric -> most milliseconds a request may take to count as good."""
    price_per_hour: float | None = None
    """Of the machine the server runs on, in any currency."""
    hardware: HardwareFacts | None = None
    """None: figures are not held against limits."""


NO_ANALYSIS = Analysis()


class Finding(Record):
    """One thing the audit noticed: its name, the evidence and what to do."""

    name: str
    severity: Literal["failure", "warning", "note"]
    """failure: the cell's figures do not mean what they seem to; warning: read them with care; note: for the record."""
    cells: list[str]
    """Ids of the cells concerned; empty for the whole run."""
    evidence: str
    advice: str
