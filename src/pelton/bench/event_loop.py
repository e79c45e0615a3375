"""The event loop of the client: uvloop where it is installed, which wakes sooner and costs less per read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as asyncio.run does; the first Ctrl-C cancels it."""
    try:
        from uvloop import new_event_loop
    except ModuleNotFoundError:
        new_event_loop = asyncio.new_event_loop
    found: list[T] = []

    async def keep() -> None:  # a task's result is written out by uvloop, which takes long for that of a large run
        found.append(await main)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(keep())
    return found[0]
