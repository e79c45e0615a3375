"""`run_serve` as a program of its own, with a scripted engine in place of the engine process.

    python -m helpers.serve_fake ENGINE_DIR SERVE_CONFIG_JSON [slow]
"""

import asyncio
import json
import sys
from pathlib import Path

from helpers.fake_engine import FakeEngineClient
from pelton.config import ExecutorConfig, ServeConfig
from pelton.errors import PeltonError
from pelton.server import launch
from pelton.tokenizer.tokenizer import Tokenizer


async def start(engine_dir, config, *, random_weights=None):
    print("Loading", flush=True)
    if "slow" in sys.argv:
        await asyncio.Event().wait()
    return FakeEngineClient(Tokenizer.from_dir(engine_dir / "tokenizer"))


if __name__ == "__main__":
    launch.EngineClient.start = start
    try:
        sys.exit(launch.run_serve(Path(sys.argv[1]), ServeConfig(**json.loads(sys.argv[2])), ExecutorConfig(),
                                  model_name="fake-model"))
    except PeltonError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
