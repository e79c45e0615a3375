"""aiperf and `pelton bench` on the same Pelton server: time to first token, time per token, throughput.

    python benchmarks/beside_aiperf.py --aiperf VENV/bin/aiperf --output results/cpu/DATE-beside-aiperf.json

In each round both measure the Pelton server and then a calibration server whose timing is about Pelton's, at each
concurrency. Definitions are converted to aiperf's: its "inter token latency" is our time per output token (one figure
a request, the mean shown), its output throughput spans the first sending to the last token of all requests. The two
should differ by no more than 3 %, or by aiperf's own error on the calibration server where that is larger. Server and
client share the machine, so it must be otherwise idle: the load averages before each round are in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client_rate import TOKENIZER, run, tell
from common import environment, print_json

from pelton.bench.calibration_process import serve_in_process
from pelton.bench.files import read_result

NUM_IN, NUM_OUT = 256, 32
TOLERANCE = 0.03
Figures = dict[str, float]


@contextmanager
def pelton_server() -> Iterator[str]:
    """The address of `pelton serve pelton-tiny`, on one thread: the clients need the other core."""
    command = [sys.executable, "-m", "pelton.cli", "serve", "pelton-tiny", "--port", "0", "--num-threads", "1",
               "--no-enable-block-reuse"]  # aiperf's prompts begin alike now and then
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Ready: "), line
            yield line.removeprefix("Ready: ").strip()
        finally:
            process.terminate()


def ask_aiperf(program: str, model: str, url: str, concurrency: int, count: int) -> Figures:
    """aiperf's own figures."""
    with tempfile.TemporaryDirectory() as folder:
        run([program, "profile", "--model", model, "--url", url, "--endpoint-type", "completions", "--streaming",
             "--tokenizer", TOKENIZER, "--isl", str(NUM_IN), "--osl", str(NUM_OUT), "--concurrency", str(concurrency),
             "--request-count", str(count), "--warmup-request-count", str(concurrency), "--extra-inputs",
             "ignore_eos:true", "--extra-inputs", f"min_tokens:{NUM_OUT}", "--use-server-token-count",
             "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--artifact-dir", folder])
        found = json.loads((Path(folder) / "profile_export_aiperf.json").read_bytes())
    return {"ttft_p50_ms": found["time_to_first_token"]["p50"], "ttft_mean_ms": found["time_to_first_token"]["avg"],
            "itl_mean_ms": found["inter_token_latency"]["avg"],
            "output_tokens_per_s": found["output_token_throughput"]["avg"]}


def ask_pelton(model: str, url: str, concurrency: int, count: int) -> Figures:
    """`pelton bench sweep`, converted to aiperf's definitions."""
    form = ["--token-ids"] if model == "calibration" else []  # that server counts words, and ids where it gets them
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "pelton.cli", "bench", "sweep", url, "-m", model, "--endpoint", "completions",
             *form, "--tokenizer", TOKENIZER, "--concurrency", str(concurrency), "--prompt-tokens", str(NUM_IN),
             "--output-tokens", str(NUM_OUT), "--num-requests", str(count), "--no-calibrate", "--json", "--output-dir",
             folder])
        result = read_result(Path(folder) / "results.json")
    measured = [r for r in result.requests if not r.is_warmup and r.is_ok]
    first = [(r.first_content_us - r.sent_us) / 1e3 for r in measured]
    gaps = [(r.last_content_us - r.first_content_us) / 1e3 / (r.output_tokens - 1) for r in measured]
    seconds = (max(r.last_content_us for r in measured) - min(r.sent_us for r in measured)) / 1e6
    return {"ttft_p50_ms": statistics.median(first), "ttft_mean_ms": statistics.fmean(first),
            "itl_mean_ms": statistics.fmean(gaps),
            "output_tokens_per_s": sum(r.output_tokens for r in measured) / seconds}


def true_figures(ttft_s: float, itl_s: float, concurrency: int) -> Figures:
    """What a client without error reads of the calibration server."""
    latency_s = ttft_s + (NUM_OUT - 1) * itl_s
    return {"ttft_p50_ms": ttft_s * 1e3, "ttft_mean_ms": ttft_s * 1e3, "itl_mean_ms": itl_s * 1e3,
            "output_tokens_per_s": concurrency * NUM_OUT / latency_s}


def medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def ratios(found: Figures, base: Figures) -> Figures:
    return {name: round(found[name] / base[name] - 1, 4) for name in base}


def measure(program: str, url: str, concurrency: int, count: int, rounds: int) -> dict[str, object]:
    """Both clients in turn on both servers, and whether they agree."""
    ours, theirs, ours_known, theirs_known, load = [], [], [], [], []
    for number in range(rounds):
        load.append(round(os.getloadavg()[0], 2))
        ours.append(ask_pelton("pelton-tiny", url, concurrency, count))
        theirs.append(ask_aiperf(program, "pelton-tiny", url, concurrency, count))
        timing = medians(ours)
        ttft_s, itl_s = timing["ttft_mean_ms"] / 1e3, timing["itl_mean_ms"] / 1e3
        known = true_figures(ttft_s, itl_s, concurrency)
        with serve_in_process(ttft_s=ttft_s, itl_s=itl_s) as calibrated:
            ours_known.append(ratios(ask_pelton("calibration", calibrated, concurrency, count), known))
            theirs_known.append(ratios(ask_aiperf(program, "calibration", calibrated, concurrency, count), known))
        tell(f"{concurrency} in flight, round {number + 1}: ours {ours[-1]}, aiperf {theirs[-1]}")
    difference = {name: round(statistics.median(b[name] / a[name] - 1 for a, b in zip(ours, theirs)), 4)
                  for name in ours[0]}
    error = {name: round(statistics.median(abs(found[name]) for found in theirs_known), 4) for name in ours[0]}
    return {"load_average": load, "pelton_bench": ours, "aiperf": theirs, "aiperf_over_pelton_bench": difference,
            "error_on_calibration": {"pelton_bench": ours_known, "aiperf": theirs_known},
            "allowed": {name: max(TOLERANCE, error[name]) for name in error},
            "agrees": {name: abs(difference[name]) <= max(TOLERANCE, error[name]) for name in error}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", required=True, help="the program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--output")
    args = parser.parse_args()
    with pelton_server() as url:
        found = {c: measure(args.aiperf, url, int(c), 24 * int(c) if int(c) < 4 else 12 * int(c), args.rounds)
                 for c in args.concurrency.split(",")}
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
    print_json({"name": "beside_aiperf", "input_len": NUM_IN, "output_len": NUM_OUT, **environment(),
                "command": " ".join(["python", *words]), "concurrency": found}, args.output)
    return 0 if all(all(cell["agrees"].values()) for cell in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
