"""Tokens that fall into the steady-state window, for the throughputs over it. Declares no metric itself."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

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
    return _rate(sample, _output_tokens)


def input_tokens_per_s(sample: Sample) -> float:
    """Prompt tokens over the window, each prompt's when its first text arrived, else at the answer's end.

    Raises:
        Withheld: no trial has a window.
    """
    return _rate(sample, _input_tokens)


def _output_tokens(record: RequestRecord, start_us: int, end_us: int) -> float:
    """The request's tokens that arrived after the start, up to the end."""
    arrivals = record.content_us  # in order, since sending
    if not arrivals:
        return record.output_tokens if start_us < record.end_us <= end_us else 0
    inside = bisect_right(arrivals, end_us - record.sent_us) - bisect_right(arrivals, start_us - record.sent_us)
    return record.output_tokens * inside / len(arrivals)


def _input_tokens(record: RequestRecord, start_us: int, end_us: int) -> float:
    at = record.end_us if record.first_text_us is None else record.first_text_us
    return record.prompt_tokens if start_us < at <= end_us else 0


def _rate(sample: Sample, count: Callable[[RequestRecord, int, int], float]) -> float:
    """A cancelled request's tokens were generated like any other's."""
    windows = {w.trial: (w.start_us, w.end_us) for w in sample.windows if w.withheld is None}
    if not windows:
        reasons = {w.withheld for w in sample.windows if w.withheld is not None}
        raise Withheld("; ".join(sorted(reasons)) or "the load has no steady part")
    seconds = sum(end - start for start, end in windows.values()) / 1e6
    return sum(count(r, *windows[r.trial]) for r in sample.requests
               if r.trial in windows and (r.is_ok or r.was_cancelled)) / seconds
