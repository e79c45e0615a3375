"""What the server process and an engine process say to each other: msgpack, one Struct per message, over channel.py.

No message carries code.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pelton.errors import RequestError, located
from pelton.types import Output, Request


class Add(msgspec.Struct, tag="add", array_like=True):
    """A request to run."""

    request: Request


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """The client left or gave up: stop all completions of the request."""

    request_id: str


class Finish(msgspec.Struct, tag="finish", array_like=True):
    """A stop string ended completion `index` after `num_tokens` output tokens; later ones do not count."""

    request_id: str
    index: int
    num_tokens: int


class GetStats(msgspec.Struct, tag="get_stats", array_like=True):
    """Ask for `Stats`."""


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True):
    """End the engine process once the current step is done."""


ToEngine = Add | Cancel | Finish | GetStats | Shutdown


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The engine has loaded and will take requests."""

    max_seq_len: int
    max_input_len: int
    max_batch_size: int
    num_blocks: int
    tokens_per_block: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    """What serves and what is served, for a benchmark that holds figures against limits: gpu, model, weight_dtype,
    kv_cache_dtype. Empty on a CPU, whose limits depend on the machine."""


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """The engine could not start, or a step broke it; the process ends after this."""

    kind: str
    """Class name of the error, from pelton.errors where it is one of ours."""
    message: str
    """One line; begins with the class's name where it is not one of ours."""


class Outputs(msgspec.Struct, tag="outputs", array_like=True):
    """News of one step for this client."""

    outputs: list[Output]


class Stats(msgspec.Struct, tag="stats", array_like=True):
    """The engine's state at one moment and its counters since start."""

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks_free: int
    """Never used or holding an unreferenced prefix."""
    num_blocks_cached: int
    """Of the free ones, those that still hold a prefix."""
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    step_host_ms: float
    """Median over recent steps of the loop's own Python time, waiting excluded."""


FromEngine = Ready | Failed | Outputs | Stats

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode


class _AddEncoded(msgspec.Struct, tag="add", array_like=True):
    """`Add` around a request that is in msgpack already."""

    request: msgspec.Raw


def encode_add(request: Request) -> bytes:
    """The message that asks for a request.

    Raises:
        RequestError: as `checked_request`.
    """
    return encode(_AddEncoded(msgspec.Raw(_check(request)[0])))


def checked_request(request: Request) -> Request:
    """A request as the engine will read it, apart from the caller's own object, which may change later.

    Raises:
        RequestError: a field is of the wrong type (Python's constructors take anything); the text names it.
    """
    return _check(request)[1]


def _check(request: Request) -> tuple[bytes, Request]:
    try:
        data = encode(request)
        return data, _decode_request(data)
    except msgspec.ValidationError as error:
        path, text = located(error)
        raise RequestError(f"{path}: {text}" if path else text, param=path or None) from None
    except (TypeError, ValueError, OverflowError) as error:  # what no message can hold
        raise RequestError(f"request: {error}") from None
