"""Latency targets: what a user writes for --goodput, and MLPerf's limits by name."""

from __future__ import annotations

import math

from pelton.errors import ConfigError

TARGETS = ("ttft", "tpot", "e2e_latency", "ttft_scheduled", "e2e_latency_scheduled")
_SPELLINGS = {"e2el": "e2e_latency", "e2e": "e2e_latency"}  # vLLM's names

PRESETS = {
    # MLPerf Inference, datacenter: limits on P99, in milliseconds (time to first token, time per output token).
    "mlperf-llama2-70b-server": (2000, 200), "mlperf-llama2-70b-interactive": (450, 40),
    "mlperf-llama3.1-8b-server": (2000, 100), "mlperf-llama3.1-8b-interactive": (500, 30),
    "mlperf-llama3.1-405b-server": (6000, 175), "mlperf-llama3.1-405b-interactive": (4500, 80),
    "mlperf-mixtral-8x7b-server": (2000, 200),
    "mlperf-deepseek-r1-server": (2000, 80), "mlperf-deepseek-r1-interactive": (1500, 15),
    "mlperf-gpt-oss-120b-server": (3000, 80), "mlperf-gpt-oss-120b-interactive": (2000, 15),
}


def parse_goodput(text: str) -> dict[str, float]:
    """`ttft:500,tpot:50` (milliseconds), or the name of a preset, to target -> milliseconds.

    Raises:
        ConfigError: an unknown target or preset, or no number above 0.
    """
    if text in PRESETS:
        ttft, tpot = PRESETS[text]
        return {"ttft": float(ttft), "tpot": float(tpot)}
    found: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition(":")
        name = _SPELLINGS.get(name, name)
        if name not in TARGETS or not value:
            raise ConfigError(f"goodput must be target:milliseconds with targets of {', '.join(TARGETS)}, such as "
                              f"ttft:500,tpot:50, or a preset ({', '.join(PRESETS)}), got {text!r}")
        if name in found:
            raise ConfigError(f"goodput names {name} twice in {text!r}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not (math.isfinite(found[name]) and found[name] > 0):
            raise ConfigError(f"goodput must give {name} milliseconds above 0, got {value!r}")
    if not found:
        raise ConfigError("goodput must name a target, such as ttft:500,tpot:50")
    return found
