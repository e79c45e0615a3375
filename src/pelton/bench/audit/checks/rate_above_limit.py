"""More tokens per second than the hardware's memory and arithmetic allow."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import CellResult, Finding, RequestRecord
from pelton.physics import Roofline

TOLERANCE = 1.03  # times the limit: peaks are measured to a few per cent


def check(view: View) -> Iterator[Finding]:
    roofline = view.roofline
    if roofline is None:
        return
    alone, together = {}, {}
    for cell in view.cells:
        streamed = [r for r in view.good(cell) if r.time_per_token_ms]
        fast = [r for r in streamed if _rate(r) > TOLERANCE * roofline.decode_tokens_per_s(1, r.prompt_tokens)]
        if fast:
            fastest = max(fast, key=_rate)
            limit = roofline.decode_tokens_per_s(1, fastest.prompt_tokens)
            alone[cell.id] = (f"{len(fast)} of {len(streamed)} answers; the fastest came at {_rate(fastest):,.0f} "
                              f"tokens/s, and one stream on the {roofline.hardware.name} is limited to {limit:,.0f}")
        rate, limit = cell.value("output_throughput"), _limit(roofline, view, cell)
        if rate and limit and rate > TOLERANCE * limit:
            together[cell.id] = (f"{rate:,.0f} tokens/s, and at most {cell.peak_in_flight} requests in flight on the "
                                 f"{roofline.hardware.name} are limited to {limit:,.0f}")
    advice = ("Weights and cache cannot be read that fast. Tokens were miscounted, several tokens come from one step "
              "(speculative decoding), or the model, its weight type or the GPU named is not the one that served.")
    yield from report("stream_above_limit", "failure", alone, advice)
    yield from report("rate_above_limit", "failure", together, advice)


def _rate(record: RequestRecord) -> float:
    return 1e3 / record.time_per_token_ms


def _limit(roofline: Roofline, view: View, cell: CellResult) -> float | None:
    """Output tokens/s at the most requests that were ever in flight, each with the least context, prompts free."""
    good = view.good(cell)
    if not good or not cell.peak_in_flight:
        return None
    return roofline.decode_tokens_per_s(cell.peak_in_flight, min(r.prompt_tokens for r in good))
