"""Cost per million output tokens."""

from __future__ import annotations

from pelton.bench.metrics.metric import Metric, Sample, Withheld


def _compute(sample: Sample) -> float:
    price = sample.analysis.price_per_hour
    num_tokens = sum(r.output_tokens for r in sample.ok)
    if price is None:
        raise Withheld("no price was given (--price-per-hour)")
    if not num_tokens:
        raise Withheld("no tokens were generated")
    return price * sample.wall_s / 3600 / num_tokens * 1e6


METRIC = Metric(
    name="cost", title="Cost of a million output tokens", unit="per 1M tokens", order=152, kind="value",
    compute=_compute, formula="price per hour x wall time / output tokens x 1,000,000",
    definition="What the machine costs in the time it generates a million tokens at this load, in the currency of "
               "--price-per-hour. The prompts' cost is in it; a machine that idles costs more.")
