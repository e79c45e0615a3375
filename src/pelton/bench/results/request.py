"""One request as the client saw it.

Times are whole microseconds since the run began, on one monotonic clock.
"""

from __future__ import annotations

from typing import Literal

from pelton.bench.results.record import Record

TokenCountSource = Literal["server", "client"]


class RequestRecord(Record, kw_only=True):
    """One request as the client saw it."""

    cell: str
    trial: int = 0
    """Which repeat of the cell, from 0."""
    index: int
    """Position in the load's plan within cell and trial; warm-up requests count for themselves."""
    worker: int = 0
    """The client process that sent it, from 0."""
    stage: str | None = None
    """The stage of a piecewise load in which it, or its conversation, was due; none for other loads."""
    session: str | None = None
    """The conversation it belongs to; none for single requests."""
    turn: int | None = None
    """Its place in the conversation, from 0."""
    is_warmup: bool
    is_stream: bool
    requested_prompt_tokens: int
    client_prompt_tokens: int
    """Counted with the client's tokenizer, template included."""
    prefix_tokens: int = 0
    """Leading prompt tokens that were asked to be the same as in other requests; 0 for prompts that share nothing."""
    server_prompt_tokens: int | None
    """The server's usage.prompt_tokens; none when it sent no usage."""
    requested_output_tokens: int
    output_tokens: int
    """The server's usage.completion_tokens, else the client's own count of the received text."""
    output_tokens_source: TokenCountSource
    cached_tokens: int | None
    """Prompt tokens the server says it took from a cache; none when it does not say."""
    connect_us: int
    """Time to open the connection; 0 on a connection that was open already."""
    was_resent: bool
    """Sent a second time because a connection closed without an answer; times are the second sending's."""
    scheduled_us: int
    """When the load's plan wanted it sent: the drawn arrival time of an open loop, the trace's own time, the moment
    the slot was free (closed loop) or the think time was over (sessions). Latency from here holds what the client or
    a full server kept waiting."""
    sent_us: int
    """Just before the request was handed to the socket, the connection being open."""
    first_byte_us: int | None
    first_chunk_us: int | None = None
    """Arrival of the first event of the stream, with text or without."""
    first_reasoning_us: int | None = None
    """Arrival of the first chunk with reasoning text; none when the answer held none."""
    first_content_us: int | None
    """Arrival of the first chunk with text of the answer itself (streaming only); reasoning does not count."""
    last_content_us: int | None
    """Arrival of the last chunk with text of either kind."""
    end_us: int
    """Arrival of the last byte, or the moment of failure or cancellation."""
    content_us: list[int]
    """Arrival of every chunk with text, reasoning included, in microseconds since sending (streaming only)."""
    first_text_tokens: float = 1.0
    """Output tokens that arrived with the first text: 1, or where chunks hold several tokens or came together the first
    text's share of the answer's characters times output_tokens (streaming only)."""
    num_chunks: int = 0
    """Events of the stream, with text or without."""
    finish_reason: str | None
    http_status: int | None
    was_cancelled: bool = False
    """Given up by the client on purpose (cancellation_rate); not an error, and no full answer either."""
    error: str | None
    """Kind of failure in one word; none for a good or a cancelled request."""
    error_message: str | None

    @property
    def is_ok(self) -> bool:
        """Answered in full."""
        return self.error is None and not self.was_cancelled

    @property
    def first_text_us(self) -> int | None:
        """Arrival of the first generated text, reasoning included."""
        return self.sent_us + self.content_us[0] if self.content_us else None

    @property
    def decode_us(self) -> int | None:
        """From the first text to the last; none when no text came."""
        return None if self.first_text_us is None else self.last_content_us - self.first_text_us

    @property
    def decode_tokens(self) -> float:
        """Output tokens that came after the first text, which are those that `decode_us` was spent on."""
        return max(self.output_tokens - self.first_text_tokens, 0.0) if self.content_us else 0.0

    @property
    def time_per_token_ms(self) -> float | None:
        """Mean time of the output tokens after the first text; none where all came with it."""
        return self.decode_us / 1e3 / self.decode_tokens if self.decode_tokens else None

    @property
    def prompt_tokens(self) -> int:
        """The true prompt size: the server's count where it gave one."""
        return self.client_prompt_tokens if self.server_prompt_tokens is None else self.server_prompt_tokens

    @property
    def latency_us(self) -> int:
        return self.end_us - self.sent_us
