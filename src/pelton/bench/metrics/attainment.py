"""Share of requests that met every latency target."""

from __future__ import annotations

from collections.abc import Sequence

from pelton.bench.metrics.metric import Metric, Sample, Withheld
from pelton.bench.results import RequestRecord


def latency_ms(record: RequestRecord, metric: str) -> float | None:
    """A request's own latency by metric name; none where it has none, such as gaps where all text came at once."""
    base = metric.removesuffix("_scheduled")
    start = record.scheduled_us if metric.endswith("_scheduled") else record.sent_us
    if base == "e2e_latency":
        return (record.end_us - start) / 1e3
    if base == "ttft":
        return None if record.first_content_us is None else (record.first_content_us - start) / 1e3
    assert metric == "tpot", metric
    return record.time_per_token_ms


def meets_targets(sample: Sample) -> Sequence[bool]:
    """For each request, cancelled ones left out, whether it was answered within all targets.

    Raises:
        Withheld: there are no targets, or the cell did not stream and a target needs a stream.
    """
    targets = sample.analysis.goodput
    if not targets:
        raise Withheld("no targets were given (--goodput)")
    if not sample.is_stream and any(not name.startswith("e2e_latency") for name in targets):
        raise Withheld("the answers were not streamed")
    return [r.is_ok and _is_answer(r) and all(_is_within(r, name, limit) for name, limit in targets.items())
            for r in sample.requests if not r.was_cancelled]


def _is_answer(record: RequestRecord) -> bool:
    """Whether it says anything: a server that is full must not meet targets with empty answers."""
    return record.output_tokens > 0 and bool(record.content_us or not record.is_stream)


def _is_within(record: RequestRecord, name: str, limit: float) -> bool:
    """A latency that an answer does not have was not kept, but for the gaps of a single token."""
    found = latency_ms(record, name)
    return name == "tpot" and record.output_tokens == 1 if found is None else found <= limit


def _compute(sample: Sample) -> float:
    met = meets_targets(sample)
    return 100 * sum(met) / max(len(met), 1)


METRIC = Metric(
    name="attainment", title="Requests within targets", unit="%", order=93, kind="value", compute=_compute,
    formula="requests that met every target / requests, cancelled ones left out",
    definition="Share of the requests whose latencies were all within the targets given with --goodput. Failed ones "
               "and answers without text met none, nor did those that lack a latency with a target: no text but "
               "reasoning, or several tokens all at once.")
