"""What a GPU's server does over HTTP: time to first token, many streams, and the time from start to a first token.

    python benchmarks/gpu_serve.py --only ttft,streams --output results/nvidia-h200/X.json

The server is `pelton serve` as users start it, over made-up weights unless an engine is asked for, prefix cache off;
the load runs in a process of its own (http_load.py), whose share of a CPU is told with each figure.

- ttft: closed loop, max(32, 2 x in flight) requests (8 of long prompts) of 128 tokens out at each prompt size and
  number in flight. The plain name is the median, .p95 the 95th percentile. The limit is all prompts in flight computed
  at once.
- streams: 512 streams, 1,536 requests of 128 in and 128 out, one chunk a token, beside `pelton bench throughput` of
  the same requests (offline). Both run twice and the faster run counts.
- start: `pelton serve ENGINE` of a built Llama-3.1-8B whose files are in the page cache, from the start of the process
  to the first streamed token, the median of three. Without --engine a random checkpoint is written and built first.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_records import make_record

from pelton.bench.files import read_result
from pelton.checkpoint.hf_config import load_model_config
from pelton.physics import Roofline, find_hardware

HERE = Path(__file__).parent
PARTS = ("ttft", "streams", "start")
OUTPUT_LEN = 128
PELTON = (sys.executable, "-m", "pelton.cli")
LONG = 4000
"""Prompts of so many tokens take seconds each and differ little: eight are enough."""
DEADLINE_S = 600.0


class Bench:
    """One model served on this machine's GPU."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.shape = HERE / "shapes" / options.http_shape
        self.name = f"{self.shape.name}.bf16"
        self.config = load_model_config(self.shape)
        self.roofline = None
        if torch.cuda.is_available():
            self.roofline = Roofline(model=self.config, hardware=find_hardware(torch.cuda.get_device_name()))

    def measurements(self, parts: list[str]) -> list[Callable[[], Iterator[dict[str, Any]]]]:
        """What makes the records of the parts asked for; any of them may fail without the others."""
        served = [part for part in ("ttft", "streams") if part in parts]
        measured = [functools.partial(self.served, served)] if served else []
        return [*measured, functools.partial(start, self.options)] if "start" in parts else measured

    def served(self, parts: list[str]) -> Iterator[dict[str, Any]]:
        """One server for both parts, then the same requests without HTTP."""
        arguments = [str(self.shape), "--random-weights", "--no-enable-block-reuse", "--max-batch-size",
                     str(self.options.streams), "--max-seq-len", "16384", *self.options.serve_options.split()]
        with serving(arguments) as (url, _):
            if "ttft" in parts:
                yield from self.ttft(url)
            if "streams" in parts:
                http = self.best_streams(url)
        if "streams" in parts:
            yield self.streams(http, self.offline())

    def load(self, url: str, **options: int) -> dict[str, Any]:
        """What one closed loop saw; see http_load.py."""
        self.options.seed += 1  # no two prompts are alike, over all loads
        given = {"output_len": OUTPUT_LEN, "vocab_size": self.config.vocab_size, "seed": self.options.seed, **options}
        arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, str(HERE / "http_load.py"), url, *arguments]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=DEADLINE_S).stdout)

    def ttft(self, url: str) -> Iterator[dict[str, Any]]:
        self.load(url, in_flight=8, num_requests=8, input_len=128)
        for num_tokens, in_flight in self.options.cells:
            num_requests = max(32, 2 * in_flight) if num_tokens < LONG else 8
            seen = self.load(url, in_flight=in_flight, num_requests=num_requests, input_len=num_tokens)
            limit = 1e3 * self.roofline.ttft_s(num_tokens, num_prompts=in_flight) if self.roofline else None
            name = f"{self.name}.ttft.p{num_tokens}.c{in_flight}"
            more = {"num_requests": num_requests, "tpot_ms": round(seen["tpot_ms"]["p50"], 3),
                    "client_cpu_share": round(seen["client_cpu_share"], 3)}
            yield make_record(name, seen["ttft_ms"]["p50"], "ms", limit, **more)
            yield make_record(f"{name}.p95", seen["ttft_ms"]["p95"], "ms", limit)

    def best_streams(self, url: str) -> dict[str, Any]:
        streams = self.options.streams
        runs = [self.load(url, in_flight=streams, num_requests=3 * streams, input_len=128) for _ in range(2)]
        return max(runs, key=lambda run: run["tokens_per_s"])

    def offline(self) -> float:
        """Tokens a second of the same requests without HTTP: all queued at once, as many running."""
        with tempfile.TemporaryDirectory() as folder:
            command = [*PELTON, "bench", "throughput", str(self.shape), "--random-weights", "--no-enable-block-reuse",
                       "--batch-sizes", str(3 * self.options.streams), "--input-len", "128", "--output-len",
                       str(OUTPUT_LEN), "--max-batch-size", str(self.options.streams), "--max-seq-len", "16384",
                       "--num-runs", "2", "--warmup-runs", "0", "--output-dir", folder,
                       *self.options.serve_options.split()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
            requests = read_result(Path(folder) / "results.json").requests
        runs = [[r for r in requests if r.trial == trial] for trial in range(2)]
        return max(sum(r.output_tokens for r in run) / (max(r.end_us for r in run) - min(r.sent_us for r in run)) * 1e6
                   for run in runs)

    def streams(self, http: dict[str, Any], offline: float) -> dict[str, Any]:
        streams = self.options.streams
        limit = self.roofline and OUTPUT_LEN / self.roofline.full_load(128, OUTPUT_LEN, streams).seconds
        rate = http["tokens_per_s"]
        return make_record(
            f"{self.name}.http.{streams}", rate, "tokens/s", limit, offline=round(offline, 2),
            share_of_offline=round(rate / offline, 4), num_requests=http["num_requests"],
            ttft_ms=http["ttft_ms"], client_cpu_share=round(http["client_cpu_share"], 3))


@contextlib.contextmanager
def serving(arguments: list[str]) -> Iterator[tuple[str, float]]:
    """`pelton serve` with these arguments: its address, and when its process was started (time.perf_counter)."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        began = time.perf_counter()
        process = subprocess.Popen([*PELTON, "serve", *arguments, "--port", "0", "--port-file", str(port_file)],
                                   stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    raise SystemExit(f"pelton serve ended with code {process.returncode}")
                if time.perf_counter() - began > DEADLINE_S:
                    raise SystemExit("pelton serve did not become ready")
                time.sleep(0.005)
            yield f"http://127.0.0.1:{port_file.read_text().strip()}", began
        finally:
            process.terminate()
            process.wait(60)


def start(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How long a built engine's server takes to its first token."""
    with tempfile.TemporaryDirectory() as folder:
        engine_dir = Path(options.engine) if options.engine else build_engine(Path(folder), options)
        for file in engine_dir.rglob("*"):
            if file.is_file():
                read_through(file)
        times = [time_start(engine_dir, options) for _ in range(3)]
    ready, first = zip(*times, strict=True)
    yield make_record("start.8b.first-token", statistics.median(first), "s", None,
                      ready_s=round(statistics.median(ready), 2), runs=[round(seconds, 2) for seconds in first])


def build_engine(folder: Path, options: argparse.Namespace) -> Path:
    """Writes a checkpoint of random weights and builds it."""
    checkpoint, engine_dir = folder / "checkpoint", folder / "engine"
    command = [sys.executable, str(HERE / "random_checkpoint.py"), str(checkpoint), "--shape", options.start_shape]
    subprocess.run(command, check=True, stdout=sys.stderr)
    subprocess.run([*PELTON, "build", str(checkpoint), "-o", str(engine_dir)], check=True, stdout=sys.stderr)
    return engine_dir


def read_through(file: Path) -> None:
    """Puts a file into the page cache."""
    with file.open("rb", buffering=0) as data:
        while data.read(2**24):
            pass


def time_start(engine_dir: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds from the start of the process to Ready, and to the first streamed token."""
    with serving([str(engine_dir), *options.serve_options.split()]) as (url, began):
        ready_s = time.perf_counter() - began
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=DEADLINE_S)
        body = json.dumps({"prompt": list(range(1, 129)), "max_tokens": 8, "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        line = connection.getresponse().readline()
        first_s = time.perf_counter() - began
        if not line.startswith(b'data: {"id"'):
            raise SystemExit(f"the first event is no token: {line!r}")
        connection.close()
    return ready_s, first_s


def parse_cells(text: str) -> list[tuple[int, int]]:
    """ "129:1,8;914:32" -> prompt tokens and requests in flight of each cell."""
    pairs = (group.split(":") for group in text.split(";"))
    return [(int(num_tokens), int(in_flight)) for num_tokens, counts in pairs for in_flight in counts.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("over HTTP")
    group.add_argument("--http-shape", default="qwen2.5-7b", help="folder of benchmarks/shapes, or another with config")
    group.add_argument("--cells", type=parse_cells, default="129:1,8,32,64;544:1,8,32,64;914:1,8,32,64;8000:1",
                       help="PROMPT_TOKENS:IN_FLIGHT,...;... of the part ttft")
    group.add_argument("--streams", type=int, default=512)
    group.add_argument("--engine", help="a built Llama-3.1-8B for the part start")
    group.add_argument("--start-shape", default="llama-3.1-8b")
    group.add_argument("--serve-options", default="", help="more options of pelton serve and bench throughput")
    group.add_argument("--seed", type=int, default=0)
