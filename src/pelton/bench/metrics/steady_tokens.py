"""Tokens that fall into the steady-state window, for the throughputs over it. Declares no metric itself."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from pelton.bench.metrics.metric import Sample, Withheld
from pelton.bench.results import RequestRecord

WINDOW = ("The window is the time in which the load was full: of a closed loop, from the moment all slots were taken "
          "to the moment the last request was sent; of arrivals at a rate, from one median latency after the first "
          "to the last.")


def output_tokens_per_s(sample: Sample) -> float:
    """Generated tokens over the window: of a stream each when its chunk arrived, else all at the answer's end.

    Raises:
        Withheld: no trial has a window.
    """
    return _rate(sample, chain.from_iterable(_output_marks(r) for r in _with_tokens(sample)))


def input_tokens_per_s(sample: Sample) -> float:
    """Prompt tokens over the window, each prompt's when its first text arrived, else at the answer's end.

    Raises:
        Withheld: no trial has a window.
    """
    marks = ((r.trial, r.end_us if r.first_text_us is None else r.first_text_us, r.prompt_tokens)
             for r in _with_tokens(sample))
    return _rate(sample, marks)


def _with_tokens(sample: Sample) -> list[RequestRecord]:
    """A cancelled request's tokens were generated like any other's."""
    return [r for r in sample.requests if r.is_ok or r.was_cancelled]


def _output_marks(record: RequestRecord) -> Iterable[tuple[int, int, float]]:
    """(trial, arrival, tokens)."""
    if not record.content_us:
        return [(record.trial, record.end_us, record.output_tokens)]
    share = record.output_tokens / len(record.content_us)
    return ((record.trial, record.sent_us + at, share) for at in record.content_us)


def _rate(sample: Sample, marks: Iterable[tuple[int, int, float]]) -> float:
    windows = {w.trial: (w.start_us, w.end_us) for w in sample.windows if w.withheld is None}
    if not windows:
        reasons = {w.withheld for w in sample.windows if w.withheld is not None}
        raise Withheld("; ".join(sorted(reasons)) or "the load has no steady part")
    seconds = sum(end - start for start, end in windows.values()) / 1e6
    inside = sum(tokens for trial, at, tokens in marks
                 if trial in windows and windows[trial][0] < at <= windows[trial][1])
    return inside / seconds
