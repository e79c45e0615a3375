"""How a figure of one GPU is told: its value beside the hardware's limit and what another server was measured to reach.

A record is {name, value, unit, limit, share, peer}. The limit comes from bytes and FLOPs (pelton/physics.py); share is
how much of it was reached, 1 being all. Peers were measured on the same kind of GPU, vLLM 0.24.
"""

from __future__ import annotations

import sys
from typing import Any

PEERS = {
    "llama-3.1-8b.bf16.decode.b1": 207, "llama-3.1-8b.bf16.decode.b8": 1613, "llama-3.1-8b.bf16.decode.b32": 5954,
    "llama-3.1-8b.bf16.decode.b64": 10781, "llama-3.1-8b.bf16.decode.b128": 17958,
    "llama-3.1-8b.bf16.decode.b256": 23778, "qwen2.5-7b.bf16.decode.b1": 209,
    "llama-3.1-8b.bf16.offline.1000-1000": 9554, "llama-3.1-8b.bf16.offline.128-128": 16948,
    "qwen2.5-7b.bf16.http.512": 10046, "start.8b.first-token": 55.5,
}
_PEER_TTFT = {  # prompt tokens -> {in flight: (p50, p95) in ms}
    129: {1: (11.3, 13.1), 8: (32, 42), 32: (111, 115), 64: (207, 230)},
    544: {1: (19.9, 24.8), 8: (93, 109), 32: (371, 417), 64: (562, 772)},
    914: {1: (25.1, 30.2), 8: (151, 162), 32: (403, 643), 64: (796, 1319)},
    8000: {1: (191, 193)},
}
PEERS |= {f"qwen2.5-7b.bf16.ttft.p{num_tokens}.c{in_flight}{suffix}": value
          for num_tokens, cells in _PEER_TTFT.items() for in_flight, values in cells.items()
          for suffix, value in zip(("", ".p95"), values, strict=True)}


def make_record(name: str, value: float, unit: str, limit: float | None, *, note: str = "",
                **more: Any) -> dict[str, Any]:
    """One figure, also shown on standard error as it is measured.

    Args:
        unit: of times ("ms", "s") the smaller is the better, of everything else the larger.
        limit: the best that the hardware allows; None where no formula is known.
        note: shown beside it, not kept.
    """
    share = None
    if limit is not None:
        share = round(limit / value if unit in ("ms", "s") else value / limit, 4)
        limit = round(limit, 2)
    record = {"name": name, "value": round(value, 2), "unit": unit, "limit": limit, "share": share,
              "peer": PEERS.get(name), **more}
    print(record, note, file=sys.stderr, flush=True)
    return record
