"""The calibration server as a program, for tests that start servers: `serve_calibrated.py PORT ITL_S`.

SIGTERM ends it. With STUBBORN set in the environment it does not, nor a child process that it has then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # this folder has modules named like installed ones

import pelton  # noqa: E402
from helpers.bench import prompt_counter  # noqa: E402
from pelton.bench.calibration import Behaviour, CalibrationServer  # noqa: E402

TINY = Path(pelton.__file__).parent / "models_data" / "pelton-tiny"


async def main() -> None:
    port, itl_s = int(sys.argv[1]), float(sys.argv[2])
    behaviour = Behaviour(ttft_s=0.005, itl_s=itl_s, model="tiny", root=str(TINY), count_prompt=prompt_counter(TINY))
    server = CalibrationServer(behaviour)
    await server.start(port=port)
    print(f"listening on {server.url}, pid {os.getpid()}", flush=True)
    if os.environ.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
