"""What a request costs the load client: `pelton bench` beside aiperf and guidellm, against the calibration server.

    python benchmarks/client_rate.py --aiperf VENV/bin/aiperf --guidellm VENV/bin/guidellm \\
        --output results/cpu/DATE-client-rate.json

The other clients are large; install each in an environment of its own. All send streamed requests of about 256 tokens
in and 16 out, 64 at a time, to the same server on the loopback, in turn. A client's cost is the CPU time of its whole
process tree per further request: the difference between a long and a short run, so that starting up does not count.
Making the prompts and reading the answers does. The result is the ratio of requests per CPU second; absolute rates of a
shared machine would say little.

The second part is accuracy: at several numbers of streams, how far the time to first token that each client reports
is from the 50 ms that the server takes. The server's own lateness is in all of them alike. The result is written anew
after every client of the first part and every number of streams of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from common import environment, print_json
from cores import Cores, on_cores, parse_cores

from pelton.bench.calibration import Behaviour, CalibrationServer

TOKENIZER = str(files("pelton") / "models_data" / "pelton-tiny")
NUM_IN, NUM_OUT, STREAMS = 256, 16, 64
TTFT_S, ITL_S = 0.05, 0.04
COUNTS = {"pelton": (2_000, 10_000), "aiperf": (500, 3_000), "guidellm": (300, 900)}

Command = Callable[[str, int, int, Path], list[str]]


def pelton(url: str, streams: int, count: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "pelton.cli", "bench", "sweep", url, "--endpoint", "completions", "--token-ids",
            "--tokenizer", TOKENIZER, "--concurrency", str(streams), "--prompt-tokens", str(NUM_IN), "--output-tokens",
            str(NUM_OUT), "--num-requests", str(count), "--workers", "1", "--no-calibrate", "--json", "--output-dir",
            str(folder)]


def aiperf(program: str) -> Command:
    def command(url: str, streams: int, count: int, folder: Path) -> list[str]:
        return [program, "profile", "--model", "calibration", "--url", url, "--endpoint-type", "completions",
                "--streaming", "--tokenizer", TOKENIZER, "--isl", str(NUM_IN), "--osl", str(NUM_OUT), "--concurrency",
                str(streams), "--request-count", str(count), "--warmup-request-count", str(streams), "--random-seed",
                "42", "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--no-gpu-telemetry",
                "--no-server-metrics", "--ui", "none", "--artifact-dir", str(folder)]
    return command


def guidellm(program: str) -> Command:
    def command(url: str, streams: int, count: int, folder: Path) -> list[str]:
        return [program, "run", "--backend", f"kind=openai_http,target={url},model=calibration", "--profile",
                f"kind=concurrent,streams={streams}", "--data",
                f"kind=synthetic_text,prompt_tokens={NUM_IN},output_tokens={NUM_OUT}", "--tokenizer",
                f"kind=huggingface_auto,model={TOKENIZER}", "--constraint", f"kind=max_requests,count={count}",
                "--output", f"kind=json,path={folder / 'result.json'}"]
    return command


def reported_ttft(name: str, folder: Path) -> tuple[float, float]:
    """(P50, P99) of the time to first token in milliseconds, as the client reports it."""
    if name == "pelton":
        (cell,) = json.loads((folder / "results.json").read_bytes())["cells"]
        found = cell["metrics"]["ttft"]["distribution"]["percentiles"]
        return found["p50"]["value"], found["p99"]["value"]
    if name == "aiperf":
        found = json.loads((folder / "profile_export_aiperf.json").read_bytes())["time_to_first_token"]
        return found["p50"], found["p99"]
    (run,) = json.loads((folder / "result.json").read_bytes())["benchmarks"]
    found = run["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
    return found["p50"], found["p99"]


@contextmanager
def server(ttft_s: float, itl_s: float, cores: Cores) -> Iterator[str]:
    """The address of a calibration server in a process of its own."""
    with on_cores(cores):
        process = subprocess.Popen([sys.executable, __file__, "--serve", f"{ttft_s},{itl_s}"], stdout=subprocess.PIPE)
    with process:
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


async def serve(ttft_s: float, itl_s: float) -> None:
    behaviour = Behaviour(ttft_s=ttft_s, itl_s=itl_s, keeps_bodies=False)
    async with CalibrationServer(behaviour) as made:
        print(made.url, flush=True)
        await asyncio.Event().wait()


def run(command: list[str]) -> tuple[float, float]:
    """(CPU seconds of the whole process tree, wall seconds)."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TERM": "dumb"})
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - start


def requests_per_cpu_second(name: str, command: Command, url: str) -> float:
    few, many = COUNTS[name]
    with tempfile.TemporaryDirectory() as folder:
        seconds = [run(command(url, STREAMS, n, Path(folder) / str(n)))[0] for n in (few, many)]
    rate = (many - few) / (seconds[1] - seconds[0])
    tell(f"{name}: {rate:,.0f} requests per CPU second")
    return rate


def accuracy(commands: dict[str, Command], url: str, streams: int) -> dict[str, dict[str, float]]:
    """Reported minus true time to first token in milliseconds, by client."""
    found = {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            run(command(url, streams, max(4 * streams, 128), Path(folder)))
            p50, p99 = reported_ttft(name, Path(folder))
        found[name] = {"ttft_error_p50_ms": round(p50 - TTFT_S * 1e3, 2),
                       "ttft_error_p99_ms": round(p99 - TTFT_S * 1e3, 2)}
        tell(f"{streams} streams, {name}: {found[name]}")
    return found


def tell(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def own_error(streams: tuple[int, ...]) -> list[dict[str, float]]:
    """`pelton bench calibrate`: the client's stamps minus the server's own."""
    command = [sys.executable, "-m", "pelton.cli", "bench", "calibrate", "--concurrency", ",".join(map(str, streams)),
               "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)["errors"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", help="the program")
    parser.add_argument("--guidellm", help="the program")
    parser.add_argument("--rounds", type=int, default=3, help="of the first part; 0 leaves it out")
    parser.add_argument("--streams", default="1,8,64,512", help="of the second part; '' leaves it out")
    parser.add_argument("--server-cores", help="such as 0 or 0-2; none: all")
    parser.add_argument("--client-cores", help="of all clients, which take turns; none: all")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(*map(float, args.serve.split(","))))
    commands: dict[str, Command] = {"pelton": pelton}
    commands |= {"aiperf": aiperf(args.aiperf)} if args.aiperf else {}
    commands |= {"guidellm": guidellm(args.guidellm)} if args.guidellm else {}
    server_cores, client_cores = parse_cores(args.server_cores), parse_cores(args.client_cores)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
    head = {"name": "client_rate", "streams": STREAMS, "input_len": NUM_IN, "output_len": NUM_OUT, **environment(),
            "command": " ".join(["python", *words]), "other_versions": _versions(args),
            "cores": {"server": args.server_cores, "client": args.client_cores}}
    streams = tuple(map(int, filter(None, args.streams.split(","))))
    with on_cores(client_cores):
        for found in itertools.chain(measure_rates(commands, args.rounds, server_cores),
                                     measure_accuracy(commands, streams, server_cores)):
            head |= found
            print_json(head, args.output)
    return 0


def measure_rates(commands: dict[str, Command], rounds: int, server_cores: Cores) -> Iterator[dict[str, object]]:
    """How many times each other client's requests `pelton bench` does in a CPU second: so far, after every client."""
    ratios: dict[str, list[float]] = {}
    for _ in range(rounds):
        with server(0.0, 0.0, server_cores) as url:
            for name, command in commands.items():
                rate = requests_per_cpu_second(name, command, url)
                if name == "pelton":
                    own = rate
                    continue
                ratios.setdefault(name, []).append(own / rate)
                yield {"requests_per_cpu_second_over": {
                    name: {"rounds": [round(r, 1) for r in values], "median": round(statistics.median(values), 1)}
                    for name, values in ratios.items()}}


def measure_accuracy(commands: dict[str, Command], streams: tuple[int, ...],
                     server_cores: Cores) -> Iterator[dict[str, object]]:
    """The client's own stamps, then what each client reports at these numbers of streams, after each of them."""
    if not streams:
        return
    yield {"client_stamp_minus_server_stamp": own_error(streams)}
    errors = {}
    with server(TTFT_S, ITL_S, server_cores) as url:
        for n in streams:
            errors[str(n)] = accuracy(commands, url, n)
            yield {"ttft_reported_minus_true": errors}


def _versions(args: argparse.Namespace) -> dict[str, str]:
    """The other clients' versions, asked of their own environments."""
    found = {"uvloop": version("uvloop")}
    for name in ("aiperf", "guidellm"):
        if program := getattr(args, name):
            python = Path(program).parent / "python"
            code = f"from importlib.metadata import version; print(version({name!r}))"
            told = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, check=True).stdout
            found[name] = told.decode().strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
