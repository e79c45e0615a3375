"""One request's record: what was planned and what came back, read after the load."""

from __future__ import annotations

from pelton.bench.client import Exchange
from pelton.bench.load.plan import Planned
from pelton.bench.metrics.itl import MAX_TOKENS_PER_CHUNK
from pelton.bench.protocols.answer import Answer
from pelton.bench.results import RequestRecord
from pelton.bench.target import Target


def make_record(planned: Planned, exchange: Exchange, target: Target, *, cell: str, trial: int, is_stream: bool,
                epoch_ns: int) -> RequestRecord:
    """Reads the exchange's bytes; times are since `epoch_ns`, the beginning of the run."""
    answer = target.dialect.read(exchange, stream=is_stream)
    failure = None if exchange.was_cancelled else answer.failure

    def since_epoch(stamp_ns: int | None) -> int | None:
        return None if stamp_ns is None else (stamp_ns - epoch_ns) // 1000

    has_usage = answer.output_tokens is not None
    content = answer.content_ns
    output_tokens = answer.output_tokens if has_usage else target.count_tokens(answer.text)
    return RequestRecord(
        cell=cell, trial=trial, index=planned.index, worker=exchange.worker, stage=planned.stage,
        session=planned.session, turn=planned.turn, is_warmup=planned.is_warmup, is_stream=is_stream,
        requested_prompt_tokens=planned.requested_prompt_tokens, client_prompt_tokens=planned.client_prompt_tokens,
        prefix_tokens=planned.prefix_tokens, server_prompt_tokens=answer.prompt_tokens,
        requested_output_tokens=planned.requested_output_tokens,
        output_tokens=output_tokens,
        output_tokens_source="server" if has_usage else "client", cached_tokens=answer.cached_tokens,
        connect_us=exchange.connect_ns // 1000, was_resent=exchange.was_resent,
        scheduled_us=since_epoch(exchange.scheduled_ns), sent_us=since_epoch(exchange.sent_ns),
        first_byte_us=since_epoch(exchange.response.first_byte_ns), first_chunk_us=since_epoch(answer.first_chunk_ns),
        first_reasoning_us=since_epoch(answer.first_reasoning_ns),
        first_content_us=since_epoch(answer.first_content_ns),
        last_content_us=since_epoch(content[-1]) if content else None, end_us=since_epoch(exchange.end_ns),
        content_us=[(stamp - exchange.sent_ns) // 1000 for stamp in content], num_chunks=answer.num_chunks,
        first_text_tokens=first_text_tokens(answer, output_tokens),
        finish_reason=answer.finish_reason, http_status=exchange.response.status or None,
        was_cancelled=exchange.was_cancelled, error=failure.kind if failure else None,
        error_message=failure.message if failure else None)


def first_text_tokens(answer: Answer, output_tokens: int) -> float:
    """Output tokens that arrived with the first text.

    Servers that send several at once often send the first alone, so an even share of the chunks would be wrong.
    """
    content = answer.content_ns
    came_alone = content[1:2] != content[:1]
    if not content or (came_alone and output_tokens <= MAX_TOKENS_PER_CHUNK * len(content)):
        return 1.0
    return max(output_tokens * answer.num_first_chars / len(answer.text), 1.0)
