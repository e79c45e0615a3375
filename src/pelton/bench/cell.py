"""One cell: prompts made beforehand, warm-up, the load, and the records and metrics of what came back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pelton.bench.client import Exchange
from pelton.bench.load.closed_loop import LoadResult, run_closed_loop
from pelton.bench.prompts import Prompt
from pelton.bench.protocols.openai import read_answer
from pelton.bench.results import CellResult, LoadSpec, RequestRecord
from pelton.bench.summary import empty_cell, summarize
from pelton.bench.target import Target

MIN_FAILURES_TO_STOP = 4
DECODE_COST_TOKENS = 8  # one decoded token alone takes about as long as so many tokens of a prefill


def closed(concurrency: int, num_requests: int) -> LoadSpec:
    """A closed loop of so many requests."""
    return LoadSpec(kind="closed", concurrency=concurrency, num_requests=num_requests)


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What a cell is asked to measure."""

    load: LoadSpec
    prompt_tokens: int
    output_tokens: int
    num_warmup: int
    is_stream: bool

    @property
    def id(self) -> str:
        kind = "" if self.is_stream else "-whole"
        return f"{self.load.key}-p{self.prompt_tokens}-o{self.output_tokens}{kind}"

    @property
    def concurrency(self) -> int:
        return self.load.concurrency or 1

    @property
    def num_requests(self) -> int:
        return self.load.num_requests or 1

    @property
    def weight(self) -> float:
        """Rough cost relative to other cells, in prompt tokens; only shares of a time budget depend on it."""
        decode = DECODE_COST_TOKENS * self.output_tokens / self.concurrency
        return (self.num_requests + self.num_warmup) * (self.prompt_tokens + decode)


@dataclass(frozen=True)
class CellOutcome:
    """A measured cell and its requests, warm-up included."""

    cell: CellResult
    records: list[RequestRecord]
    was_cancelled: bool
    is_server_failing: bool
    """The server does not answer any more, or not as a server should; further cells make no sense."""


async def run_cell(spec: CellSpec, target: Target, *, epoch_ns: int, deadline_ns: int | None = None,
                   on_end: Callable[[Exchange], None] | None = None) -> CellOutcome:
    """Measures one cell.

    Args:
        epoch_ns: beginning of the run on the benchmark's clock.
        deadline_ns: when to start no more requests.
        on_end: told of every measured exchange as it ends.
    """
    records: list[RequestRecord] = []
    load = LoadResult()
    for is_warmup, num_requests in ((True, spec.num_warmup), (False, spec.num_requests)):
        prompts = [target.prompts.make(spec.prompt_tokens) for _ in range(num_requests)]
        dialect = target.dialect
        requests = [target.client.build("POST", dialect.route, dialect.body(p, stream=spec.is_stream))
                    for p in prompts]
        await target.client.open_connections(min(spec.concurrency, num_requests))
        load = await run_closed_loop(
            requests, target.client.send, concurrency=spec.concurrency, deadline_ns=deadline_ns,
            max_failures_in_a_row=max(MIN_FAILURES_TO_STOP, spec.concurrency), on_end=None if is_warmup else on_end)
        records += [_record(spec, target, exchange, prompts[index], index, is_warmup=is_warmup, epoch_ns=epoch_ns)
                    for index, exchange in sorted(load.exchanges.items())]
        if load.was_cancelled or load.is_server_failing:
            break
    measured = [r for r in records if not r.is_warmup]
    cell = summarize_cell(spec, measured, stop_reason=_stop_reason(load, records))
    return CellOutcome(cell, records, load.was_cancelled, _is_server_failing(load, records, measured))


def _stop_reason(load: LoadResult, records: list[RequestRecord]) -> str | None:
    last = next((r for r in reversed(records) if not r.is_ok), None)
    if load.is_server_failing and last is not None:
        return f"{load.stop_reason} ({last.error}: {last.error_message})"
    return load.stop_reason


def _is_server_failing(load: LoadResult, records: list[RequestRecord], measured: list[RequestRecord]) -> bool:
    """A server that refuses a request's content (4xx) may well take the next cell's; any other failure stays."""
    failed_all = bool(measured) and not any(r.is_ok for r in measured)
    if not (load.is_server_failing or failed_all):
        return False
    last = next(r for r in reversed(records) if not r.is_ok)
    return not (last.error or "").startswith("http_4")


def _record(spec: CellSpec, target: Target, exchange: Exchange, prompt: Prompt, index: int, *, is_warmup: bool,
            epoch_ns: int) -> RequestRecord:
    answer = read_answer(exchange, stream=spec.is_stream)

    def since_epoch(stamp_ns: int | None) -> int | None:
        return None if stamp_ns is None else (stamp_ns - epoch_ns) // 1000

    has_usage = answer.output_tokens is not None
    content = answer.content_ns
    return RequestRecord(
        cell=spec.id, index=index, is_warmup=is_warmup, is_stream=spec.is_stream,
        requested_prompt_tokens=spec.prompt_tokens,
        client_prompt_tokens=prompt.num_tokens + target.info.frame_correction_tokens,
        server_prompt_tokens=answer.prompt_tokens, requested_output_tokens=spec.output_tokens,
        output_tokens=answer.output_tokens if has_usage else target.count_tokens(answer.text),
        output_tokens_source="server" if has_usage else "client", cached_tokens=answer.cached_tokens,
        connect_us=exchange.connect_ns // 1000, was_resent=exchange.was_resent,
        scheduled_us=since_epoch(exchange.scheduled_ns or exchange.sent_ns), sent_us=since_epoch(exchange.sent_ns),
        first_byte_us=since_epoch(exchange.response.first_byte_ns),
        first_chunk_us=since_epoch(answer.first_chunk_ns), first_reasoning_us=since_epoch(answer.first_reasoning_ns),
        first_content_us=since_epoch(answer.first_content_ns), num_chunks=answer.num_chunks,
        last_content_us=since_epoch(content[-1]) if content else None, end_us=since_epoch(exchange.end_ns),
        content_us=[(stamp - exchange.sent_ns) // 1000 for stamp in content], finish_reason=answer.finish_reason,
        http_status=exchange.response.status or None, error=answer.failure.kind if answer.failure else None,
        error_message=answer.failure.message if answer.failure else None)


def summarize_cell(spec: CellSpec, measured: list[RequestRecord], *, stop_reason: str | None = None) -> CellResult:
    """All metrics of a cell's measured requests."""
    cell = empty_cell(spec.id, spec.load, prompt_tokens=spec.prompt_tokens, output_tokens=spec.output_tokens,
                      is_stream=spec.is_stream)
    return summarize(msgspec.structs.replace(cell, stop_reason=stop_reason), measured)
