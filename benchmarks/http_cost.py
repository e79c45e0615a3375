"""What HTTP costs: the same requests offline (engine in this process) and over HTTP, eight at a time, taking turns.

    python benchmarks/http_cost.py --output results/cpu/DATE-http-cost.json

Same random Qwen2-0.5B-shaped bf16 model, same prompts as token ids, greedy, one chunk a token. Both engines are loaded
all the time and only one works at once. The client runs on the same cores as the server and counts as part of the
cost; the ratio is the result, the times are those of a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import torch
from common import environment, make_checkpoint, print_json

from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.executor import Executor
from pelton.engine.offline import run_requests
from pelton.types import Request, SamplingParams

VOCAB = 151936


def start_server(engine_dir: Path, threads: int, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """A `pelton serve` process and its address, once it is ready."""
    port_file = Path(folder) / "port"
    command = [sys.executable, "-m", "pelton.cli", "serve", str(engine_dir), "--port", "0",
               "--port-file", str(port_file), "--num-threads", str(threads), "--max-blocks", "512",
               "--no-enable-block-reuse", "--served-model-name", "bench"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not port_file.exists():
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        time.sleep(0.1)
    return process, f"http://127.0.0.1:{port_file.read_text().strip()}"


async def run_http(url: str, prompts: list[list[int]], num_out: int) -> tuple[float, int]:
    """Seconds until the last stream has ended, and the chunks that carried a token."""
    async with aiohttp.ClientSession() as session:
        async def one(prompt: list[int]) -> int:
            body = {"model": "bench", "prompt": prompt, "max_tokens": num_out, "temperature": 0, "ignore_eos": True,
                    "stream": True, "stream_options": {"include_usage": True}}
            usage = None
            async with session.post(f"{url}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    if line.startswith(b"data: {") and b'"usage":{' in line:
                        usage = json.loads(line[6:])["usage"]
            return usage["completion_tokens"]

        began = time.perf_counter()
        counts = await asyncio.gather(*(one(prompt) for prompt in prompts))
        return time.perf_counter() - began, sum(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "pelton-bench-qwen2-0.5b"))
    parser.add_argument("--output")
    args = parser.parse_args()
    engine_dir = ensure_engine(str(make_checkpoint(Path(args.folder))), BuildConfig(max_seq_len=1024))
    config = ExecutorConfig(num_threads=args.threads, kv_cache_config=KvCacheConfig(max_blocks=512,
                                                                                   enable_block_reuse=False))
    params = SamplingParams(temperature=0.0, max_tokens=args.output_len, ignore_eos=True)
    draw = random.Random(5)
    offline, http = [], []
    with tempfile.TemporaryDirectory() as folder, Executor(engine_dir, config) as executor:
        server, url = start_server(engine_dir, args.threads, folder)
        try:
            for round_number in range(args.rounds + 1):
                prompts = [[draw.randrange(VOCAB) for _ in range(args.input_len)] for _ in range(args.streams)]
                wall, count = run_requests(executor, [Request(prompt, sampling_params=params) for prompt in prompts])
                http_wall, http_count = asyncio.run(run_http(url, prompts, args.output_len))
                assert count == http_count == args.streams * args.output_len
                if round_number:  # the first warms up both
                    offline.append(count / wall)
                    http.append(http_count / http_wall)
        finally:
            server.terminate()
            server.wait()
    ratio = statistics.median(http) / statistics.median(offline)
    print_json({"name": "http_cost", "model": "Qwen2-0.5B shape, random bf16 weights", "streams": args.streams,
                "input_len": args.input_len, "output_len": args.output_len, "threads": args.threads, **environment(),
                "offline_tokens_per_s": offline, "http_tokens_per_s": http, "http_over_offline": ratio,
                "cost_percent": 100 * (1 - ratio)}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
