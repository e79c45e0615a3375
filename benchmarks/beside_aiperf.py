"""aiperf and `pelton bench` on the same Pelton server: time to first token, time per token, throughput.

    python benchmarks/beside_aiperf.py --aiperf VENV/bin/aiperf --concurrency 1 --num-requests 64 \\
        --server-cores 0-2 --client-cores 3,4 --known-cores 5-7 --output results/cpu/DATE-beside-aiperf-1.json

Both clients send the prompts of one file, 256 tokens each, and ask for the same 16 to 32 tokens (lengths that differ,
or all requests would go in step and a client's pauses between them decide who waits for whom). For both the measured
requests begin with a full wave at once: aiperf waits for its warm-up requests to end, `pelton bench` sends none. In
each round both measure the Pelton server, by turns first. Beside it, on cores of its own, the same goes on with a
calibration server whose timing is about Pelton's.

Definitions are converted to aiperf's: its "inter token latency" is our time per output token (one figure a request, the
mean shown), its output throughput spans the first sending to the last token of all requests. The two should differ by
no more than 3 %, or by aiperf's own error on the calibration server where that is larger.

A server is not equally fast twice: less so the fewer cores it has to itself, and a client that pauses longer between
requests changes who waits for whom. So the Pelton server's own metrics are the witness. Each client's means are also
held against those of the server for the very same requests, and what they differ by then is the clients' doing. Exit
status 1: they differ by more than allowed even so. With --timed the server's model takes a known time, which takes
most of the rest away (benchmarks/timed_server.py). The load averages before each run are in the result.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_rate import TOKENIZER, run, tell
from common import environment, print_json
from cores import Cores, on_cores, parse_cores

from pelton.bench.calibration import Behaviour, CalibrationServer
from pelton.bench.files import read_result
from pelton.bench.monitors.prometheus import fetch, parse
from pelton.bench.options import SweepOptions
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.vocabulary import make_vocabulary
from pelton.bench.target import open_target
from pelton.tokenizer.tokenizer import Tokenizer

NUM_IN, NUM_OUT = 256, range(16, 33)
TOLERANCE = 0.03
TTFT, GAPS = "pelton_time_to_first_token_seconds", "pelton_inter_token_seconds"
COMPARED = ("ttft_p50_ms", "ttft_mean_ms", "itl_mean_ms", "output_tokens_per_s")
Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What both clients send."""

    file: Path
    lengths: list[int]
    """Output tokens of each request."""
    concurrency: int


@dataclass(frozen=True)
class Answer:
    """One request as a client saw it, up to its last token."""

    ttft_ms: float
    latency_ms: float
    num_tokens: int
    is_warmup: bool = False


@dataclass(frozen=True)
class Sums:
    """What a Pelton server, or a client, has counted: first tokens and gaps between tokens, and their times."""

    ttft_ms: float
    num_first: float
    gaps_ms: float
    num_gaps: float

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.ttft_ms - other.ttft_ms, self.num_first - other.num_first, self.gaps_ms - other.gaps_ms,
                    self.num_gaps - other.num_gaps)

    @property
    def means(self) -> tuple[float, float]:
        return self.ttft_ms / self.num_first, self.gaps_ms / self.num_gaps


def make_load(file: Path, count: int, concurrency: int, seed: int = 0) -> Load:
    """Writes the file, in a form that both read: a line of text and output_length for each request.

    `extra` is what aiperf is to send besides, as `pelton bench` does of its own accord.
    """
    rng = random.Random(seed)
    vocabulary = make_vocabulary(Tokenizer.from_dir(TOKENIZER), is_chat=False, token_ids=False)
    prompts = PromptFactory(vocabulary, seed=seed)
    lengths = [NUM_OUT[i % len(NUM_OUT)] for i in range(count)]
    rng.shuffle(lengths)
    lines = [{"text": prompts.make(NUM_IN).text, "output_length": length,
              "extra": {"temperature": 0.0, "ignore_eos": True, "min_tokens": length}} for length in lengths]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Load(file, lengths, concurrency)


@contextmanager
def serving(command: list[str], cores: Cores) -> Iterator[str]:
    """The address that a server prints as the last word of its first line."""
    with on_cores(cores):
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   text=True)
    with process:
        try:
            line = process.stdout.readline()
            assert "http" in line, line
            yield line.split()[-1]
        finally:
            process.terminate()


def pelton_server(*, is_timed: bool) -> list[str]:
    """`pelton serve pelton-tiny` on one thread, or over a model that takes a known time."""
    if is_timed:
        return [str(Path(__file__).with_name("timed_server.py"))]
    return ["-m", "pelton.cli", "serve", "pelton-tiny", "--port", "0", "--device", "cpu", "--num-threads", "1",
            "--no-enable-block-reuse"]  # the prompts are sent again in every round


def known_server(ttft_s: float, itl_s: float, load: Load) -> list[str]:
    return [__file__, "--serve", repr(ttft_s), repr(itl_s), str(load.file)]


async def serve(ttft_s: float, itl_s: float, file: Path) -> None:
    """The calibration server. It counts prompts as Pelton does, those of the file beforehand."""
    tokenizer = Tokenizer.from_dir(TOKENIZER)

    @functools.cache
    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    for line in file.read_text().splitlines():
        count(json.loads(line)["text"])
    behaviour = Behaviour(ttft_s=ttft_s, itl_s=itl_s, keeps_bodies=False,
                          count_prompt=lambda body: count(body["prompt"]))
    async with CalibrationServer(behaviour) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def ask_aiperf(program: str, model: str, url: str, load: Load) -> tuple[Figures, list[Answer]]:
    """aiperf's own figures, and its record of each request."""
    with tempfile.TemporaryDirectory() as folder:
        run([program, "profile", "--model", model, "--url", url, "--endpoint-type", "completions", "--streaming",
             "--tokenizer", TOKENIZER, "--input-file", str(load.file), "--custom-dataset-type", "single-turn",
             "--dataset-sampling-strategy", "sequential", "--concurrency", str(load.concurrency), "--request-count",
             str(len(load.lengths)), "--warmup-request-count", str(load.concurrency),
             "--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none",
             "--artifact-dir", folder])
        found = json.loads((Path(folder) / "profile_export_aiperf.json").read_bytes())
        lines = (Path(folder) / "profile_export.jsonl").read_text().splitlines()
    answers = [_answer_of_aiperf(json.loads(line)) for line in lines]
    measured = [a for a in answers if not a.is_warmup]
    check_work("aiperf", measured, found["input_sequence_length"]["avg"], load)
    return {"ttft_p50_ms": found["time_to_first_token"]["p50"], "ttft_mean_ms": found["time_to_first_token"]["avg"],
            "itl_mean_ms": found["inter_token_latency"]["avg"],
            "output_tokens_per_s": found["output_token_throughput"]["avg"],
            "in_flight_mean": in_flight(measured, found["benchmark_duration"]["avg"])}, answers


def _answer_of_aiperf(record: dict[str, dict[str, Any]]) -> Answer:
    ttft, latency, tokens = (record["metrics"][name]["value"]
                             for name in ("time_to_first_token", "request_latency", "output_sequence_length"))
    return Answer(ttft, latency, tokens, is_warmup=record["metadata"]["benchmark_phase"] == "warmup")


def ask_pelton(model: str, url: str, load: Load) -> tuple[Figures, list[Answer]]:
    """`pelton bench sweep`, converted to aiperf's definitions."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "pelton.cli", "bench", "sweep", url, "-m", model, "--endpoint", "completions",
             "--tokenizer", TOKENIZER, "--prompt-data", str(load.file), "--no-unique-prompts", "--prompt-tokens",
             "data", "--output-tokens", "data", "--concurrency", str(load.concurrency), "--num-requests",
             str(len(load.lengths)), "--num-warmup", "0", "--no-calibrate", "--no-watch-server", "--no-watch-gpus",
             "--json", "--output-dir", folder])
        records = [r for r in read_result(Path(folder) / "results.json").requests if r.is_ok]
    answers = [Answer((r.first_content_us - r.sent_us) / 1e3, (r.last_content_us - r.sent_us) / 1e3, r.output_tokens)
               for r in records]
    check_work("pelton bench", answers, statistics.fmean(r.server_prompt_tokens for r in records), load)
    gaps = [(a.latency_ms - a.ttft_ms) / (a.num_tokens - 1) for a in answers]
    seconds = (max(r.last_content_us for r in records) - min(r.sent_us for r in records)) / 1e6
    return {"ttft_p50_ms": statistics.median(a.ttft_ms for a in answers),
            "ttft_mean_ms": statistics.fmean(a.ttft_ms for a in answers), "itl_mean_ms": statistics.fmean(gaps),
            "output_tokens_per_s": sum(a.num_tokens for a in answers) / seconds,
            "in_flight_mean": in_flight(answers, seconds)}, answers


def check_work(client: str, answers: Sequence[Answer], prompt_tokens: float, load: Load) -> None:
    """Ends the program unless a client was answered all that it should ask, by the server's own count."""
    lengths = sorted(a.num_tokens for a in answers)
    if lengths != sorted(load.lengths) or prompt_tokens != NUM_IN:
        raise SystemExit(f"{client} got {len(lengths)} answers of {statistics.fmean(lengths):.1f} tokens to prompts of "
                         f"{prompt_tokens:g}; asked for were {len(load.lengths)} of "
                         f"{statistics.fmean(load.lengths):.1f} to prompts of {NUM_IN}")


def in_flight(answers: Sequence[Answer], seconds: float) -> float:
    """Requests in flight on average: below the concurrency by the pauses between them, and by the run-out."""
    return sum(a.latency_ms for a in answers) / 1e3 / seconds


def sums_of(answers: Sequence[Answer]) -> Sums:
    return Sums(sum(a.ttft_ms for a in answers), len(answers), sum(a.latency_ms - a.ttft_ms for a in answers),
                sum(a.num_tokens - 1 for a in answers))


def told_by_server(url: str) -> Sums:
    """What a Pelton server has counted since it started."""
    told = {name: value for name, _, _, value in parse(fetch(f"{url}/metrics"))}
    return Sums(told[f"{TTFT}_sum"] * 1e3, told[f"{TTFT}_count"], told[f"{GAPS}_sum"] * 1e3, told[f"{GAPS}_count"])


def cost_of_probes(url: str) -> Sums:
    """What the small requests add that `pelton bench` sends before its load, found by sending them."""
    before = told_by_server(url)
    options = SweepOptions(url=url, endpoint="completions", tokenizer=TOKENIZER)
    asyncio.run(open_target(options, seed=0))
    return told_by_server(url) - before


def against_server(figures: Figures, answers: Sequence[Answer], told: Sums, concurrency: int) -> dict[str, Figures]:
    """The server's own means for the same requests, warm-up included, and what the client's are of them.

    Tokens per second are held against what the server's latencies would allow without pauses between requests.
    """
    seen = sums_of(answers)
    if (seen.num_first, seen.num_gaps) != (told.num_first, told.num_gaps):
        raise SystemExit(f"the client saw {seen.num_first:g} answers with {seen.num_gaps:g} gaps, the server "
                         f"{told.num_first:g} with {told.num_gaps:g}")
    allowed = concurrency * sum(a.num_tokens for a in answers) * 1e3 / (told.ttft_ms + told.gaps_ms)
    own = {"ttft_mean_ms": told.means[0], "itl_mean_ms": told.means[1], "output_tokens_per_s": allowed}
    mine = {"ttft_mean_ms": seen.means[0], "itl_mean_ms": seen.means[1],
            "output_tokens_per_s": figures["output_tokens_per_s"]}
    return {"server": rounded(own), "over_server": relative(mine, own)}


def true_figures(ttft_s: float, itl_s: float, load: Load) -> Figures:
    """What a client without error reads of the calibration server when it never pauses."""
    free_s = [0.0] * load.concurrency
    for length in load.lengths:  # the next request goes to the slot that is free first
        slot = free_s.index(min(free_s))
        free_s[slot] += ttft_s + (length - 1) * itl_s
    return {"ttft_p50_ms": ttft_s * 1e3, "ttft_mean_ms": ttft_s * 1e3, "itl_mean_ms": itl_s * 1e3,
            "output_tokens_per_s": sum(load.lengths) / max(free_s)}


def rounds_on(clients: dict[str, Callable[..., tuple[Figures, list[Answer]]]], model: str, url: str, load: Load,
              count: int) -> dict[str, list[Figures]]:
    """The figures of each client in each round, by turns first; beside a Pelton server's own."""
    seen: dict[str, list[Figures]] = {name: [] for name in clients}
    is_known = model == "calibration"
    for number in range(count):
        for name in list(clients)[:: 1 if number % 2 == 0 else -1]:
            extra = cost_of_probes(url) if name == "pelton_bench" and not is_known else Sums(0, 0, 0, 0)
            before = None if is_known else told_by_server(url)
            load_average = round(os.getloadavg()[0], 2)
            figures, answers = clients[name](model, url, load)
            figures = {**rounded(figures), "load_average": load_average}
            if before is not None:
                told = told_by_server(url) - before - extra
                figures |= against_server(figures, answers, told, load.concurrency)
            seen[name].append(figures)
            tell(f"{model}, {load.concurrency} in flight, round {number + 1}, {name}: {figures}")
    return seen


def rounded(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


def relative(found: Figures, base: Figures) -> Figures:
    return {name: round(found[name] / base[name] - 1, 4) for name in COMPARED if name in base}


def median_of(all_found: Sequence[Figures]) -> Figures:
    return {name: round(statistics.median(found[name] for found in all_found), 4) for name in all_found[0]}


def compare(seen: dict[str, list[Figures]], known: dict[str, list[Figures]], true: Figures) -> dict[str, object]:
    """By how much aiperf's figures differ from those of `pelton bench`, as they are and each over the server's own."""
    pairs = list(zip(seen["pelton_bench"], seen["aiperf"]))
    plain = median_of([relative(theirs, ours) for ours, theirs in pairs])
    over_server = median_of([
        {name: (1 + theirs["over_server"][name]) / (1 + value) - 1 for name, value in ours["over_server"].items()}
        for ours, theirs in pairs])
    errors = {name: [relative(figures, true) for figures in found] for name, found in known.items()}
    allowed = {name: max(TOLERANCE, abs(error)) for name, error in median_of(errors["aiperf"]).items()}
    return {**seen, "true_of_calibration": true, "error_on_calibration": errors, "allowed": allowed,
            "aiperf_over_pelton_bench": plain, "agrees": within(plain, allowed),
            "aiperf_over_pelton_bench_by_server": over_server, "agrees_by_server": within(over_server, allowed)}


def within(difference: Figures, allowed: Figures) -> dict[str, bool]:
    return {name: abs(value) <= allowed[name] for name, value in difference.items()}


def measure(args: argparse.Namespace, load: Load, pilot: Load) -> dict[str, object]:
    """All rounds on the Pelton server and, beside them where there are cores for it, on the calibration server."""
    clients = {"pelton_bench": ask_pelton, "aiperf": functools.partial(ask_aiperf, args.aiperf)}
    server_cores, client_cores = parse_cores(args.server_cores), parse_cores(args.client_cores)
    first, *others = sorted(parse_cores(args.known_cores))
    with serving(pelton_server(is_timed=args.timed), server_cores) as url:
        with on_cores(client_cores):
            figures, _ = ask_pelton("pelton-tiny", url, pilot)  # the server's first requests, and its timing
        ttft_s, itl_s = figures["ttft_mean_ms"] / 1e3, figures["itl_mean_ms"] / 1e3

        def on_pelton() -> dict[str, list[Figures]]:
            with on_cores(client_cores):
                return rounds_on(clients, "pelton-tiny", url, load, args.rounds)

        def on_known() -> dict[str, list[Figures]]:
            with serving(known_server(ttft_s, itl_s, load), frozenset([first])) as known_url:
                with on_cores(frozenset(others) or frozenset([first])):
                    return rounds_on(clients, "calibration", known_url, load, args.rounds)

        with ThreadPoolExecutor(1 if args.known_cores is None else 2) as pool:
            seen, known = [job.result() for job in [pool.submit(on_pelton), pool.submit(on_known)]]
    return compare(seen, known, true_figures(ttft_s, itl_s, load))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", help="the program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--num-requests", type=int, default=64, help="of each client in each round")
    parser.add_argument("--timed", action="store_true", help="the Pelton server's model takes a known time")
    parser.add_argument("--server-cores", help="such as 0-2; none: all")
    parser.add_argument("--client-cores", help="of both clients, which take turns; none: all")
    parser.add_argument("--known-cores", help="of the calibration server (one) and its clients, which then go on at "
                                              "the same time; none: all, after the others")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(float(args.serve[0]), float(args.serve[1]), Path(args.serve[2])))
    with tempfile.TemporaryDirectory() as folder:
        load = make_load(Path(folder) / "load.jsonl", args.num_requests, args.concurrency)
        pilot = make_load(Path(folder) / "pilot.jsonl", 4 * args.concurrency + 4, args.concurrency, seed=1)
        found = measure(args, load, pilot)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
    cores = {name: getattr(args, f"{name}_cores") for name in ("server", "client", "known")}
    print_json({"name": "beside_aiperf", "input_len": NUM_IN, "output_len": [NUM_OUT[0], NUM_OUT[-1]], **environment(),
                "command": " ".join(["python", *words]), "cores": cores, "is_timed": args.timed,
                "concurrency": args.concurrency, "num_requests": args.num_requests, **found}, args.output)
    return 0 if all(found["agrees_by_server"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
