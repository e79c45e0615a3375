"""Inter-token latency."""

from __future__ import annotations

from itertools import pairwise

from pelton.bench.metrics.metric import Metric, Sample, Withheld

MAX_TOKENS_PER_CHUNK = 1.05  # a little over one: text that spans tokens (half characters) is held back by servers


def tokens_per_chunk(sample: Sample) -> float | None:
    """Generated tokens over chunks with text, over all good streamed requests."""
    num_chunks = sum(len(r.content_us) for r in sample.ok)
    return sum(r.output_tokens for r in sample.ok) / num_chunks if num_chunks else None


def _compute(sample: Sample) -> list[list[float]]:
    streamed = sample.streamed()
    ratio = tokens_per_chunk(sample)
    if ratio is not None and ratio > MAX_TOKENS_PER_CHUNK:
        raise Withheld(f"chunks hold {ratio:.2f} tokens on average, so gaps between chunks are not gaps between tokens")
    return [[(b - a) / 1e3 for a, b in pairwise(r.content_us)] for r in streamed]


METRIC = Metric(
    name="itl", title="Inter-token latency", unit="ms", order=20, kind="clusters", compute=_compute,
    formula="t(chunk i + 1) - t(chunk i), all gaps of all requests together",
    definition="Time between two neighbouring chunks with text of one request. Withheld where chunks hold more than "
               f"{MAX_TOKENS_PER_CHUNK} tokens on average, because a gap between chunks is then not one between "
               "tokens; time per output token knows how many tokens a gap is of.")
