"""How many tokens a second the server can carry: the real server and engine process around a model that takes no time.

    python benchmarks/http_capacity.py --streams 512 --output results/cpu/DATE-http-capacity.json

Everything of a token's way but the model is there: scheduler, messages between the processes, detokenizing, chunks,
sockets, a client in a process of its own. Tokens a second depend on the machine and on what else it does; the CPU time
that each process takes per token hardly does. With --step-ms every step takes at least that long, as on a device.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import environment, print_json

HERE = Path(__file__)
VOCAB = 152_064


class InstantRunner:
    """Draws tokens without a model. Has the interface of `pelton.runner.runner.Runner`."""

    eos_ids = ()

    def __init__(self, max_batch_size: int, step_s: float):
        self.limits = SimpleNamespace(max_batch_size=max_batch_size, max_seq_len=4096, max_input_len=4095,
                                      max_num_tokens=8192, tokens_per_block=64, num_blocks=64 * max_batch_size,
                                      vocab_size=VOCAB)
        self._step_s, self._ends = step_s, 0.0
        self._tokens = random.Random(0).choices(range(VOCAB), k=max_batch_size)

    def forward(self, batch: Any) -> Any:
        self._ends = max(self._ends, time.monotonic()) + self._step_s
        return SimpleNamespace(result=lambda ends=self._ends: self._result(batch, ends))

    def sample(self, step: Any, masks: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}

    def _result(self, batch: Any, ends: float) -> Any:
        from pelton.types import StepOutput

        time.sleep(max(ends - time.monotonic(), 0.0))
        slots = batch.sampled_slots
        return StepOutput(batch.step_id, slots, self._tokens[:len(slots)])


def run_engine(argv: list[str]) -> int:
    """The engine process, with an InstantRunner in place of what it would load."""
    from pelton.config import ExecutorConfig, KvCacheConfig
    from pelton.engine import process
    from pelton.engine.loop import EngineLoop
    from pelton.scheduler.scheduler import Scheduler

    def load(args: argparse.Namespace) -> EngineLoop:
        runner = InstantRunner(int(os.environ["STREAMS"]), float(os.environ["STEP_MS"]) / 1e3)
        config = ExecutorConfig(kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        return EngineLoop(Scheduler(runner.limits, config), runner)

    process._load = load
    return process.main(argv)


def run_server(port_file: str) -> int:
    """`pelton serve` over such an engine process."""
    from pelton.config import ExecutorConfig, RandomWeights, ServeConfig
    from pelton.engine import client
    from pelton.server.launch import run_serve

    client.ENGINE = (str(HERE), "engine")
    return run_serve(Path("no-model"), ServeConfig(port=0, port_file=port_file), ExecutorConfig(), model_name="none",
                     random_weights=RandomWeights())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    environ = {**os.environ, "STREAMS": str(args.streams), "STEP_MS": str(args.step_ms)}
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        server = subprocess.Popen([sys.executable, str(HERE), "server", str(port_file)], env=environ,
                                  stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with code {server.returncode}")
                time.sleep(0.05)
            pids = {"server": server.pid, "engine": _child(server.pid)}
            url = f"http://127.0.0.1:{port_file.read_text().strip()}"
            return _load(url, pids, args)
        finally:
            server.terminate()
            server.wait()


def _load(url: str, pids: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(HERE.with_name("http_load.py")), url, "--in-flight", str(args.streams),
               "--num-requests", str(args.num_requests or 3 * args.streams), "--input-len", str(args.input_len),
               "--output-len", str(args.output_len), "--vocab-size", str(VOCAB)]
    before = {name: _cpu_seconds(pid) for name, pid in pids.items()}
    seen = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    num_tokens = seen["num_requests"] * args.output_len
    used = {name: _cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    used["client"] = seen["client_cpu_share"] * seen["wall_s"]
    return {"streams": args.streams, "step_ms": args.step_ms, "num_requests": seen["num_requests"],
            "tokens_per_s": round(seen["tokens_per_s"]), "ttft_ms": seen["ttft_ms"],
            "cpu_us_per_token": {name: round(1e6 * seconds / num_tokens, 1) for name, seconds in used.items()}}


def _child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    if sys.argv[1:2] == ["engine"]:
        return run_engine(sys.argv[2:])
    if sys.argv[1:2] == ["server"]:
        return run_server(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--num-requests", type=int, help="default: three times the streams")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--output")
    args = parser.parse_args()
    print_json({"name": "http_capacity", **measure(args), "environment": environment()}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
