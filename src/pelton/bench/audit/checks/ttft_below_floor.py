"""First tokens sooner than the hardware could compute the prompt."""

from __future__ import annotations

from collections.abc import Iterator

from pelton.bench.audit.view import View, report
from pelton.bench.results import Finding, RequestRecord
from pelton.physics import Roofline

TOLERANCE = 0.97  # of the floor: peaks are measured to a few per cent


def check(view: View) -> Iterator[Finding]:
    roofline = view.roofline
    if roofline is None:
        return
    evidence = {}
    for cell in view.cells:
        streamed = [r for r in view.good(cell) if r.content_us]
        early = [r for r in streamed if _ttft_s(r) < TOLERANCE * _floor_s(roofline, r)]
        if early:
            quickest = min(early, key=lambda r: _ttft_s(r) / _floor_s(roofline, r))
            evidence[cell.id] = (
                f"{len(early)} of {len(streamed)} prompts; {quickest.prompt_tokens} tokens took "
                f"{1e3 * _ttft_s(quickest):.1f} ms, and the {roofline.hardware.name} needs "
                f"{1e3 * _floor_s(roofline, quickest):.1f} ms")
    yield from report(
        "ttft_below_floor", "failure", evidence,
        "Nothing computes a prompt that fast: it came out of a cache, its size was miscounted, or the model or GPU "
        "named is not the one that served. Make prompts unique, or switch the server's prefix cache off.")


def _ttft_s(record: RequestRecord) -> float:
    return (record.first_text_us - record.sent_us) / 1e6


def _floor_s(roofline: Roofline, record: RequestRecord) -> float:
    """Tokens that the server says were cached are granted: another finding speaks of them."""
    cached = min(record.cached_tokens or 0, record.prompt_tokens - 1)
    return roofline.ttft_s(record.prompt_tokens, num_cached_tokens=max(cached, 0))
