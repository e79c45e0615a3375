"""`pelton serve pelton-tiny` over a model that takes a known time and next to no CPU time.

    python benchmarks/timed_server.py --step-ms 20 --token-us 200

Scheduler, engine process, messages, detokenizing, chunks and sockets are a server's own. In the place of the model a
runner draws words and lets each step last --step-ms, and --token-us longer for each prompt token in it, as a device
would: whatever else the machine does, the server is about as fast for one client as for the next.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from http_capacity import InstantRunner

MAX_BATCH_SIZE = 64


class TimedRunner(InstantRunner):
    """Draws words of pelton-tiny's vocabulary, so that every chunk has text."""

    def __init__(self, step_s: float, token_s: float) -> None:
        super().__init__(MAX_BATCH_SIZE, step_s)
        self._base_s, self._token_s = step_s, token_s
        self.limits.vocab_size, self.limits.max_seq_len, self.limits.max_input_len = 6144, 2048, 2047
        self._tokens = [1000 + 7 * slot for slot in range(MAX_BATCH_SIZE)]

    def forward(self, batch: Any) -> Any:
        self._step_s = self._base_s + self._token_s * (batch.total_tokens - batch.num_decodes)
        return super().forward(batch)


def run_engine(argv: list[str]) -> int:
    """The engine process, with a TimedRunner in place of what it would load."""
    from pelton.config import ExecutorConfig, KvCacheConfig
    from pelton.engine import process
    from pelton.engine.loop import EngineLoop
    from pelton.scheduler.scheduler import Scheduler
    from pelton.server.launch import SERVED_CHUNK

    def load(args: argparse.Namespace) -> EngineLoop:
        runner = TimedRunner(*(float(value) for value in os.environ["STEP_AND_TOKEN_S"].split(",")))
        config = ExecutorConfig(chunked_prefill_size=SERVED_CHUNK,
                                kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        return EngineLoop(Scheduler(runner.limits, config), runner)

    process._load = load
    return process.main(argv)


def main() -> int:
    if sys.argv[1:2] == ["engine"]:
        return run_engine(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--token-us", type=float, default=200.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--served-model-name", default="pelton-tiny")
    args = parser.parse_args()
    os.environ["STEP_AND_TOKEN_S"] = f"{args.step_ms / 1e3},{args.token_us / 1e6}"
    from pelton.cli import main as pelton
    from pelton.engine import client

    client.ENGINE = (str(Path(__file__)), "engine")
    return pelton(["serve", "pelton-tiny", "--port", str(args.port), "--device", "cpu",
                   "--served-model-name", args.served_model_name])


if __name__ == "__main__":
    sys.exit(main())
