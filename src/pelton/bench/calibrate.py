"""`pelton bench calibrate`: the client's own error, against a server that stamps what it sends.

Streams arrive one after another at an even rate, so that about as many are open as asked for and their events do not
come in step. Both processes read one monotonic clock; the error of an event is the client's stamp minus the server's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.table import Table

from pelton.bench import event_loop
from pelton.bench.calibration_process import serve_in_process
from pelton.bench.client import Address, Client, Exchange, allow_connections, now_ns
from pelton.bench.load.options import require_list
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import run_load
from pelton.bench.percentiles import percentile
from pelton.bench.protocols.sse import read_events
from pelton.bench.results import ClientError
from pelton.bench.table import make_console
from pelton.errors import PeltonError

LEVELS = (1, 8, 64, 512)
NUM_TOKENS = 32
TTFT_S = 0.05
LEAST_ITL_S = 0.01
MOST_EVENTS_PER_S = 12_800  # 512 streams at 25 tokens a second each
LEAST_REQUESTS = 8
TARGET_P50_US, TARGET_P99_US = 2_500.0, 10_000.0


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """`pelton bench calibrate`."""

    concurrency: tuple[int, ...] = LEVELS
    """Streams open at a time."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        require_list("concurrency", self.concurrency, least=1)


def run_calibrate(options: CalibrateOptions) -> int:
    """Measures and prints the client's error; returns 1 when it is above the target, else 0."""
    errors = [measure_error(level) for level in options.concurrency]
    if options.json:
        print(msgspec.json.encode({"errors": errors, "is_within_target": all(map(is_within_target, errors))}).decode())
    else:
        make_console().print(error_table(errors))
    return 0 if all(map(is_within_target, errors)) else 1


def is_within_target(error: ClientError) -> bool:
    """Whether the client may be trusted at this number of streams."""
    return error.event_p50_us < TARGET_P50_US and error.event_p99_us < TARGET_P99_US


def measure_error(concurrency: int) -> ClientError:
    """The error of this process's client at so many streams.

    Raises:
        PeltonError: the server did not start, or requests to it failed.
    """
    itl_s = max(LEAST_ITL_S, concurrency / MOST_EVENTS_PER_S)
    answer_s = TTFT_S + (NUM_TOKENS - 1) * itl_s
    num_requests = concurrency + max(2 * concurrency, LEAST_REQUESTS)
    allow_connections(2 * concurrency)
    with serve_in_process(ttft_s=TTFT_S, itl_s=itl_s) as url:
        client = Client(Address.parse(url), headers={}, timeout_s=60.0)
        requests = _requests(client, num_requests, num_warmup=concurrency, gap_ns=round(answer_s / concurrency * 1e9))
        exchanges = event_loop.run(_measure(client, requests, concurrency))
    return summarize_errors(concurrency, exchanges)


async def _measure(client: Client, requests: Sequence[Planned], concurrency: int) -> list[Exchange]:
    await client.open_connections(concurrency)
    job = LoadJob(concurrency=None, start_ns=now_ns() + 10_000_000)
    result = await run_load(job, requests, client.send)
    client.close()
    failed = [e.failure for _, e in result.sent if e.failure is not None]
    if failed:
        raise PeltonError(f"calibration: {len(failed)} of {len(result.sent)} requests failed: {failed[0].message}")
    return [exchange for planned, exchange in result.sent if not planned.is_warmup]


def _requests(client: Client, count: int, *, num_warmup: int, gap_ns: int) -> list[Planned]:
    body: dict[str, Any] = {"model": "calibration", "prompt": "water", "max_tokens": NUM_TOKENS, "stream": True}
    request = client.build("POST", "/completions", msgspec.json.encode(body))
    return [Planned(index=i, is_warmup=i < num_warmup, request=request, due_ns=i * gap_ns, requested_prompt_tokens=1,
                    client_prompt_tokens=1, requested_output_tokens=NUM_TOKENS) for i in range(count)]


class _Event(msgspec.Struct):
    sent_ns: int | None = None


def stamps(exchange: Exchange) -> Iterator[tuple[int, int]]:
    """(server's stamp, client's stamp) of every event of a calibration server's answer that holds a token."""
    for received_ns, event in read_events(exchange.response.pieces):
        if event != b"[DONE]" and (sent_ns := msgspec.json.decode(event, type=_Event).sent_ns) is not None:
            yield sent_ns, received_ns


def summarize_errors(concurrency: int, exchanges: Sequence[Exchange]) -> ClientError:
    """The errors of the events, of the first ones, and of the gaps between them."""
    first, events, gaps = [], [], []
    for exchange in exchanges:
        errors = [(received - sent) / 1e3 for sent, received in stamps(exchange)]
        first.append(errors[0])
        events += errors
        gaps += [abs(b - a) for a, b in itertools.pairwise(errors)]  # the difference of gaps is that of their errors
    figures = [round(percentile(sorted(values), p), 1) for values in (first, events, gaps) for p in (50, 99)]
    names = ("ttft_p50_us", "ttft_p99_us", "event_p50_us", "event_p99_us", "itl_p50_us", "itl_p99_us")
    return ClientError(concurrency=concurrency, num_events=len(events), **dict(zip(names, figures)))


def error_table(errors: Sequence[ClientError]) -> Table:
    """The client's own error in milliseconds, one row per number of streams."""
    table = Table(title="The client's own error, ms", title_justify="left", title_style="bold", header_style="dim",
                  box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("streams", "events", "TTFT P50", "P99", "event P50", "P99", "ITL P50", "P99", "within target"):
        table.add_column(column, justify="right")
    for error in errors:
        figures = (error.ttft_p50_us, error.ttft_p99_us, error.event_p50_us, error.event_p99_us, error.itl_p50_us,
                   error.itl_p99_us)
        table.add_row(str(error.concurrency), f"{error.num_events:,}", *(f"{us / 1e3:.3f}" for us in figures),
                      "yes" if is_within_target(error) else "[red]no[/red]")
    return table
