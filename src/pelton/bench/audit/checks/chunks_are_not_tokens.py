"""Chunks that carry several tokens or none, or that arrive in bunches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pelton.bench.audit.view import View, report
from pelton.bench.metrics.itl import MAX_TOKENS_PER_CHUNK
from pelton.bench.results import Finding

MAX_SHARE_BUNCHED = 0.2


def check(view: View) -> Iterator[Finding]:
    merged, short, bunched = {}, {}, {}
    for cell in view.cells:
        good = [r for r in view.good(cell) if r.is_stream and r.content_us]
        num_chunks = sum(len(r.content_us) for r in good)
        if not num_chunks:
            continue
        ratio = sum(r.output_tokens for r in good) / num_chunks
        if ratio > MAX_TOKENS_PER_CHUNK:
            merged[cell.id] = f"{ratio:.2f} tokens per chunk"
        elif ratio < 1 / MAX_TOKENS_PER_CHUNK:
            short[cell.id] = f"{1 / ratio:.2f} chunks with text for every token counted"
        gaps = [b - a for r in good for a, b in pairwise(r.content_us)]
        share = sum(gap == 0 for gap in gaps) / len(gaps) if gaps else 0.0
        if share > MAX_SHARE_BUNCHED:
            bunched[cell.id] = f"{share:.0%} of the chunks arrived together with the one before"
    yield from report("chunks_are_not_tokens", "warning", merged,
                      "Inter-token latency is withheld for these cells. Time per output token is estimated: the first "
                      "text counts for its share of the characters.")
    yield from report(
        "output_tokens_miscounted", "failure", short,
        "More chunks with text arrived than tokens were counted, and a token makes one chunk at most: rates and times "
        "per token are wrong by as much. Check the server's usage, or that tokenizer is the served model's own.")
    yield from report(
        "chunks_arrive_bunched", "warning", bunched,
        "The server or the network sends several chunks at once: low percentiles of inter-token latency are zeros, "
        "high ones several tokens. Read time per output token, which answers that came all at once do not have.")
