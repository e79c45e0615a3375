"""The interface of a protocol: what a server was found to accept, and how its answers are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pelton.bench.client import Exchange
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import Answer

OutputControl = Literal["ignore_eos+min_tokens", "ignore_eos", "min_tokens", "max_tokens"]


class Dialect(Protocol):
    """Spells requests to one server. Immutable; probing replaces it by the one that was accepted."""

    output_control: OutputControl
    """Fields by which the output length is asked for."""
    can_stream: bool

    def route(self, *, stream: bool) -> str:
        """Path of the requests, as `Client.build` takes it."""
        ...

    def body(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        """The JSON body of one request."""
        ...

    def read(self, exchange: Exchange, *, stream: bool) -> Answer:
        """Reads a finished exchange; a failure on the wire or in the text is recorded in the answer."""
        ...

    def output_variants(self, *, fixed: bool) -> Sequence[Dialect]:
        """Spellings to be tried, the richest first: of a fixed output length, or of an open-ended one."""
        ...

    def stream_variants(self) -> Sequence[Dialect]:
        """The same for streams."""
        ...
