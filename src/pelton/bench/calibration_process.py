"""The calibration server in a process of its own: `python -m pelton.bench.calibration_process TTFT_S ITL_S`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pelton.bench.calibration import Behaviour, CalibrationServer
from pelton.errors import PeltonError
from pelton.lifeline import end_with_parent


@contextmanager
def serve_in_process(*, ttft_s: float, itl_s: float) -> Iterator[str]:
    """The address of a calibration server on a free port of the loopback; it ends with the block.

    Raises:
        PeltonError: it did not start.
    """
    command = [sys.executable, "-m", "pelton.bench.calibration_process", repr(ttft_s), repr(itl_s)]
    # Not in the terminal's process group: Ctrl-C is the client's to handle.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                raise PeltonError("the calibration server did not start; see the error above")
            yield url
        finally:
            process.kill()


async def _serve(ttft_s: float, itl_s: float) -> None:
    async with CalibrationServer(Behaviour(ttft_s=ttft_s, itl_s=itl_s, keeps_bodies=False)) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    # asyncio's own loop: it writes at once, where others gather writes until after the stamp has aged.
    asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
