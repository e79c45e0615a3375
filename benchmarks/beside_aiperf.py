"""aiperf and `pelton bench` on the same Pelton server: time to first token, time per token, throughput.

    python benchmarks/beside_aiperf.py --aiperf VENV/bin/aiperf --concurrency 1,8 --num-requests 64,160 \\
        --server-cores 0-2 --client-cores 3,4 --known-cores 5-7 --output results/cpu/DATE-beside-aiperf.json

Both clients send the prompts of one file, 256 tokens each by default, and ask for the same 16 to 32 tokens (lengths
that differ, or all requests would go in step and a client's pauses between them decide who waits for whom). For both
the measured requests begin on an idle server, one slot after another in a second, since what a wave of prompts at once
waits would weigh more than all the rest: aiperf waits for its warm-up requests to end, `pelton bench` sends none. In
each round both measure the Pelton server, by turns first. Beside it, on cores of its own, the same goes on with a
calibration server whose timing is about Pelton's. The result is written anew after every round.

Definitions are converted to aiperf's: its "inter token latency" is our time per output token (one figure a request, the
mean shown), its output throughput spans the first sending to the last token of all requests. The two should differ by
no more than 3 %, or by aiperf's own error on the calibration server where that is larger. An error there is beyond the
times that the calibration server really kept, by its own count: its timers are late by up to a millisecond, and that is
none of a client's doing.

A server is not equally fast twice: less so the fewer cores it has to itself, and a client that pauses longer between
requests changes who waits for whom. So the Pelton server's own metrics are the witness. Each client's means are also
held against those of the server for the very same requests, and what they differ by then is the clients' doing. Exit
status 1: they differ by more than allowed even so. With --timed the server's model takes a known time, which takes
most of the rest away (benchmarks/timed_server.py). With --shape it is a model of benchmarks/shapes on a GPU, which
keeps its time better than CPU cores do: random weights, and the vocabulary of pelton-tiny, for whose words clients have
a tokenizer. The load averages before each run are in the result.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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

NUM_OUT = range(16, 33)
MODEL = "served"
SHAPES = Path(__file__).parent / "shapes"
TOLERANCE = 0.03
TTFT, GAPS = "pelton_time_to_first_token_seconds", "pelton_inter_token_seconds"
COMPARED = ("ttft_p50_ms", "ttft_mean_ms", "itl_mean_ms", "output_tokens_per_s")
Figures = dict[str, float]
Client = Callable[..., tuple[Figures, list["Answer"]]]


@dataclass(frozen=True)
class Load:
    """What both clients send."""

    file: Path
    lengths: list[int]
    """Output tokens of each request."""
    num_in: int
    """Prompt tokens of each request."""
    concurrency: int
    ramp_s: float = 0.0
    """From the first slot's first request to the last slot's."""

    def slot_begins_s(self, slot: int) -> float:
        return self.ramp_s * slot / max(self.concurrency - 1, 1)


@dataclass(frozen=True)
class Answer:
    """One request as a client saw it, up to its last token."""

    ttft_ms: float
    latency_ms: float
    num_tokens: int
    is_warmup: bool = False


@dataclass(frozen=True)
class Sums:
    """What a server, or a client, has counted: first tokens and gaps between tokens, and their times."""

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


def make_load(file: Path, count: int, num_in: int, concurrency: int, *, ramp_s: float = 0.0, seed: int = 0) -> Load:
    """Writes the file, in a form that both read: a line of text and output_length for each request.

    `extra` is what aiperf is to send besides, as `pelton bench` does of its own accord.
    """
    rng = random.Random(seed)
    vocabulary = make_vocabulary(Tokenizer.from_dir(TOKENIZER), is_chat=False, token_ids=False)
    prompts = PromptFactory(vocabulary, seed=seed)
    lengths = [NUM_OUT[i % len(NUM_OUT)] for i in range(count)]
    rng.shuffle(lengths)
    lines = [{"text": prompts.make(num_in).text, "output_length": length,
              "extra": {"temperature": 0.0, "ignore_eos": True, "min_tokens": length}} for length in lengths]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Load(file, lengths, num_in, concurrency, ramp_s if concurrency > 1 else 0.0)


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


def pelton_server(args: argparse.Namespace, folder: Path) -> list[str]:
    """`pelton serve pelton-tiny` on one thread, over a model that takes a known time, or of random weights on a GPU."""
    if args.timed:
        return [str(Path(__file__).with_name("timed_server.py")), "--served-model-name", MODEL,
                *args.serve_options.split()]
    command = ["-m", "pelton.cli", "serve", "--port", "0", "--served-model-name", MODEL,
               "--no-enable-block-reuse"]  # the prompts are sent again in every round
    if args.shape is None:
        return [*command, "pelton-tiny", "--device", "cpu", "--num-threads", "1"]
    tokenizer = Tokenizer.from_dir(TOKENIZER)
    config = json.loads((SHAPES / args.shape / "config.json").read_bytes())
    config |= {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.bos_id}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(TOKENIZER) / name, folder / name)
    return [*command, str(folder), "--random-weights", "--max-batch-size", str(max(16, *args.concurrency)),
            "--max-seq-len", str(2 * args.input_len + NUM_OUT[-1]), *args.serve_options.split()]


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
    behaviour = Behaviour(ttft_s=ttft_s, itl_s=itl_s, model=MODEL, keeps_bodies=False, tells_metrics=True,
                          count_prompt=lambda body: count(body["prompt"]))
    async with CalibrationServer(behaviour) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def ask_aiperf(program: str, url: str, load: Load) -> tuple[Figures, list[Answer]]:
    """aiperf's own figures, and its record of each request."""
    with tempfile.TemporaryDirectory() as folder:
        run([program, "profile", "--model", MODEL, "--url", url, "--endpoint-type", "completions", "--streaming",
             "--tokenizer", TOKENIZER, "--input-file", str(load.file), "--custom-dataset-type", "single-turn",
             "--dataset-sampling-strategy", "sequential", "--concurrency", str(load.concurrency), "--request-count",
             str(len(load.lengths)), "--warmup-request-count", str(load.concurrency),
             *(["--concurrency-ramp-duration", str(load.ramp_s)] if load.ramp_s else []),
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


def ask_pelton(url: str, load: Load) -> tuple[Figures, list[Answer]]:
    """`pelton bench sweep`, converted to aiperf's definitions."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "pelton.cli", "bench", "sweep", url, "-m", MODEL, "--endpoint", "completions",
             "--tokenizer", TOKENIZER, "--prompt-data", str(load.file), "--no-unique-prompts", "--prompt-tokens",
             "data", "--output-tokens", "data", "--concurrency", str(load.concurrency), "--num-requests",
             str(len(load.lengths)), *(["--ramp-up", str(load.slot_begins_s(load.concurrency))] if load.ramp_s else []),
             "--num-warmup", "0", "--no-calibrate", "--no-watch-server", "--no-watch-gpus",
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
    if lengths != sorted(load.lengths) or prompt_tokens != load.num_in:
        raise SystemExit(f"{client} got {len(lengths)} answers of {statistics.fmean(lengths):.1f} tokens to prompts of "
                         f"{prompt_tokens:g}; asked for were {len(load.lengths)} of "
                         f"{statistics.fmean(load.lengths):.1f} to prompts of {load.num_in}")


def in_flight(answers: Sequence[Answer], seconds: float) -> float:
    """Requests in flight on average: below the concurrency by the pauses between them, and by the run-out."""
    return sum(a.latency_ms for a in answers) / 1e3 / seconds


def sums_of(answers: Sequence[Answer]) -> Sums:
    return Sums(sum(a.ttft_ms for a in answers), len(answers), sum(a.latency_ms - a.ttft_ms for a in answers),
                sum(a.num_tokens - 1 for a in answers))


def told_by_server(url: str) -> Sums:
    """What a Pelton server, or the calibration server, has counted since it started."""
    told = {name: value for name, _, _, value in parse(fetch(f"{url}/metrics"))}
    return Sums(told[f"{TTFT}_sum"] * 1e3, told[f"{TTFT}_count"], told[f"{GAPS}_sum"] * 1e3, told[f"{GAPS}_count"])


def cost_of_probes(url: str) -> Sums:
    """What the small requests add that `pelton bench` sends before its load, found by sending them."""
    before = told_by_server(url)
    options = SweepOptions(url=url, endpoint="completions", tokenizer=TOKENIZER)
    asyncio.run(open_target(options, seed=0))
    return told_by_server(url) - before


def against_server(figures: Figures, answers: Sequence[Answer], told: Sums, load: Load) -> dict[str, Figures]:
    """The server's own means for the same requests, warm-up included, and what the client's are of them.

    Tokens per second are held against what the server's latencies would allow without pauses between requests.
    """
    seen = sums_of(answers)
    if (seen.num_first, seen.num_gaps) != (told.num_first, told.num_gaps):
        raise SystemExit(f"the client saw {seen.num_first:g} answers with {seen.num_gaps:g} gaps, the server "
                         f"{told.num_first:g} with {told.num_gaps:g}")
    allowed = load.concurrency * sum(a.num_tokens for a in answers) * 1e3 / (told.ttft_ms + told.gaps_ms)
    own = {"ttft_mean_ms": told.means[0], "itl_mean_ms": told.means[1], "output_tokens_per_s": allowed}
    mine = {"ttft_mean_ms": seen.means[0], "itl_mean_ms": seen.means[1],
            "output_tokens_per_s": figures["output_tokens_per_s"]}
    return {"server": rounded(own), "over_server": relative(mine, own)}


def true_figures(ttft_ms: float, itl_ms: float, load: Load) -> Figures:
    """What a client without error reads of a server of this timing when it never pauses."""
    free_ms = [1e3 * load.slot_begins_s(slot) for slot in range(load.concurrency)]
    for length in load.lengths:  # the next request goes to the slot that is free first
        slot = free_ms.index(min(free_ms))
        free_ms[slot] += ttft_ms + (length - 1) * itl_ms
    return {"ttft_p50_ms": ttft_ms, "ttft_mean_ms": ttft_ms, "itl_mean_ms": itl_ms,
            "output_tokens_per_s": sum(load.lengths) / max(free_ms) * 1e3}


def own_error(figures: Figures, load: Load) -> Figures:
    """What a client's figures of the calibration server are beyond the times which that server kept."""
    kept = figures["server"]
    return relative(figures, true_figures(kept["ttft_mean_ms"], kept["itl_mean_ms"], load))


@dataclass(frozen=True)
class Side:
    """A server, and the cores of the clients that measure it."""

    name: str
    url: str
    cores: Cores

    def ask(self, clients: dict[str, Client], load: Load, number: int) -> dict[str, Figures]:
        """One round: the figures of each client, by turns first, beside the server's own of the same requests."""
        seen = {}
        with on_cores(self.cores):
            for name in list(clients)[:: 1 if number % 2 == 0 else -1]:
                extra = cost_of_probes(self.url) if name == "pelton_bench" else Sums(0, 0, 0, 0)
                before, load_average = told_by_server(self.url), round(os.getloadavg()[0], 2)
                figures, answers = clients[name](self.url, load)
                told = told_by_server(self.url) - before - extra
                seen[name] = {**rounded(figures), "load_average": load_average,
                              **against_server(figures, answers, told, load)}
                tell(f"{self.name}, {load.concurrency} in flight, round {number + 1}, {name}: {seen[name]}")
        return seen


def rounded(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


def relative(found: Figures, base: Figures) -> Figures:
    return {name: round(found[name] / base[name] - 1, 4) for name in COMPARED if name in base}


def median_of(all_found: Sequence[Figures]) -> Figures:
    return {name: round(statistics.median(found[name] for found in all_found), 4) for name in all_found[0]}


def compare(rounds: Sequence[dict[str, Figures]], known: Sequence[dict[str, Figures]], load: Load) -> dict[str, Any]:
    """By how much aiperf's figures differ from those of `pelton bench`, as they are and each over the server's own.

    Args:
        rounds: of the Pelton server, by client. known: of the calibration server.
    """
    plain = median_of([relative(found["aiperf"], found["pelton_bench"]) for found in rounds])
    over_server = median_of([
        {name: (1 + found["aiperf"]["over_server"][name]) / (1 + value) - 1
         for name, value in found["pelton_bench"]["over_server"].items()} for found in rounds])
    errors = {client: [own_error(found[client], load) for found in known] for client in known[0]}
    allowed = {name: max(TOLERANCE, abs(error)) for name, error in median_of(errors["aiperf"]).items()}
    return {"rounds": rounds, "rounds_on_calibration": known, "error_on_calibration": errors, "allowed": allowed,
            "aiperf_over_pelton_bench": plain, "agrees": within(plain, allowed),
            "aiperf_over_pelton_bench_by_server": over_server, "agrees_by_server": within(over_server, allowed)}


def verdict(found: dict[str, Any]) -> str:
    """A line for each figure compared."""
    lines = [f"{found['concurrency']} in flight, {found['num_requests']} requests, rounds: {len(found['rounds'])}"]
    for name, value in found["aiperf_over_pelton_bench"].items():
        error = statistics.median(error[name] for error in found["error_on_calibration"]["aiperf"])
        by_server = found["aiperf_over_pelton_bench_by_server"].get(name)
        lines.append(f"{name:20} aiperf over pelton bench {value:+.2%}, allowed {found['allowed'][name]:.2%} (aiperf's "
                     f"own error {error:+.2%}): {'agrees' if found['agrees'][name] else 'DIFFERS'}"
                     + (f"; with the server's changes taken out {by_server:+.2%}" if by_server is not None else ""))
    return "\n".join(lines)


def within(difference: Figures, allowed: Figures) -> dict[str, bool]:
    return {name: abs(value) <= allowed[name] for name, value in difference.items()}


@dataclass
class Comparison:
    """One load on a Pelton server and, on a calibration server, beside it."""

    load: Load
    sides: list[Side]
    rounds: list[list[dict[str, Figures]]] = field(default_factory=list)

    def go_on(self, clients: dict[str, Client], pool: ThreadPoolExecutor) -> None:
        """One more round on both servers."""
        jobs = [pool.submit(side.ask, clients, self.load, len(self.rounds)) for side in self.sides]
        self.rounds.append([job.result() for job in jobs])

    def found(self) -> dict[str, Any]:
        return {"concurrency": self.load.concurrency, "num_requests": len(self.load.lengths),
                **compare(*zip(*self.rounds), self.load)}


def measure(args: argparse.Namespace, folder: Path, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """All rounds of all loads on one Pelton server.

    Args:
        keep: takes what has been found, whenever a load's round has ended.
    """
    clients: dict[str, Client] = {"pelton_bench": ask_pelton, "aiperf": functools.partial(ask_aiperf, args.aiperf)}
    with ExitStack() as stack:
        url = stack.enter_context(serving(pelton_server(args, folder), parse_cores(args.server_cores)))
        pool = stack.enter_context(ThreadPoolExecutor(1 if args.known_cores is None else 2))
        comparisons = []
        for number, (concurrency, count) in enumerate(zip(args.concurrency, args.num_requests, strict=True)):
            load = make_load(folder / f"{number}.jsonl", count, args.input_len, concurrency, ramp_s=args.ramp_s,
                             seed=2 * number)
            sides = open_sides(args, url, load, folder / "pilot.jsonl", stack)
            comparisons.append(Comparison(load, sides))
        for _ in range(args.rounds):
            for comparison in comparisons:
                comparison.go_on(clients, pool)
                keep([c.found() for c in comparisons if c.rounds])


def open_sides(args: argparse.Namespace, url: str, load: Load, pilot_file: Path, stack: ExitStack) -> list[Side]:
    """The Pelton server, asked a little to find its timing, and a calibration server of that timing."""
    client_cores = parse_cores(args.client_cores)
    first, *others = sorted(parse_cores(args.known_cores))
    pilot = make_load(pilot_file, 4 * load.concurrency + 4, load.num_in, load.concurrency, seed=1)
    with on_cores(client_cores):
        figures, _ = ask_pelton(url, pilot)
    known = known_server(figures["ttft_mean_ms"] / 1e3, figures["itl_mean_ms"] / 1e3, load)
    known_url = stack.enter_context(serving(known, frozenset([first])))
    return [Side("pelton", url, client_cores), Side("calibration", known_url, frozenset(others) or frozenset([first]))]


def whole_numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", help="the program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=whole_numbers, default="1,8")
    parser.add_argument("--num-requests", type=whole_numbers, default="64,160",
                        help="of each client in each round, for each concurrency")
    parser.add_argument("--input-len", type=int, default=256, help="prompt tokens of each request")
    parser.add_argument("--ramp-s", type=float, default=1.0, help="from the first slot's first request to the last's")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--timed", action="store_true", help="the Pelton server's model takes a known time")
    kind.add_argument("--shape", help="serve this folder of benchmarks/shapes on a GPU")
    parser.add_argument("--serve-options", default="", help="more options of timed_server.py, or of pelton serve with "
                                                            "--shape")
    parser.add_argument("--server-cores", help="such as 0-2; none: all")
    parser.add_argument("--client-cores", help="of both clients, which take turns; none: all")
    parser.add_argument("--known-cores", help="of the calibration server (one) and its clients, which then go on at "
                                              "the same time; none: all, after the others")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(float(args.serve[0]), float(args.serve[1]), Path(args.serve[2])))
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
    cores = {name: getattr(args, f"{name}_cores") for name in ("server", "client", "known")}
    head = {"name": "beside_aiperf", "input_len": args.input_len, "output_len": [NUM_OUT[0], NUM_OUT[-1]],
            "ramp_s": args.ramp_s, **environment(), "command": " ".join(["python", *words]), "cores": cores,
            "is_timed": args.timed, "shape": args.shape}
    kept: list[dict[str, Any]] = []

    def keep(comparisons: list[dict[str, Any]]) -> None:
        kept[:] = comparisons
        print_json({**head, "comparisons": comparisons}, args.output)
        for comparison in comparisons:
            tell(verdict(comparison))

    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder), keep)
    return 0 if all(agrees for comparison in kept for agrees in comparison["agrees_by_server"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
