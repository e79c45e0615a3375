"""What the handlers of one server share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pelton.config import ServeConfig
from pelton.engine.messages import Ready, Stats
from pelton.metrics.serving import ServingMetrics
from pelton.tokenizer.tokenizer import Tokenizer
from pelton.types import Output, Request

T = TypeVar("T")
LONG_TEXT_CHARS = 4000  # about a millisecond of encoding


class EngineClientLike(Protocol):
    """What the server needs of `pelton.engine.client.EngineClient`."""

    ready: Ready

    @property
    def is_alive(self) -> bool: ...

    def generate(self, request: Request) -> AsyncIterator[Output]: ...

    async def finish(self, request_id: str, index: int, num_tokens: int) -> None: ...

    async def stats(self) -> Stats: ...

    async def shutdown(self) -> None: ...


@dataclass
class ServerState:
    """One served engine.

    Attributes:
        tokenizer_dir: where a client on this machine finds the tokenizer; shown as `root` in /v1/models.
        created: Unix time in seconds at which the server came up.
        sampling_defaults: fields of SamplingParams for what requests leave out.
    """

    client: EngineClientLike
    tokenizer: Tokenizer
    config: ServeConfig
    model_name: str
    tokenizer_dir: Path
    metrics: ServingMetrics = field(default_factory=ServingMetrics)
    created: int = field(default_factory=lambda: int(time.time()))
    sampling_defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")

    async def encode(self, work: Callable[[], T], num_chars: int) -> T:
        """Runs an encoding, off the event loop if the text is long, so that no stream waits for another's prompt."""
        if num_chars < LONG_TEXT_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
