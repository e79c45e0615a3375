"""The pictures of docs/benchmarking.md's traps: each is walked into on purpose, with a real server, and drawn.

    python benchmarks/trap_pictures.py --folder docs/images --output results/cpu/DATE-traps.json

`pelton bench sweep` measures `pelton serve pelton-tiny`, with its prefix cache, once as the careless do and once as it
should be; the pause between requests is Pelton's scheduler over devices that are formulas (schedule_sim.py). The JSON
has what is drawn. --only NAMES draws some of them; --png writes PNG files beside the SVG.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from common import environment, print_json
from schedule_sim import Simulation, make_parser

from pelton.bench.files import read_result
from pelton.bench.percentiles import percentile
from pelton.bench.report.draw.export import pictures
from pelton.bench.report.figure import Figure, Plot, Trace, line
from pelton.bench.results import RunResult

TEXT = "the time of the day and the size of the thing "
SYSTEM = "You are a helpful assistant. Answer in full sentences, and say so where you do not know. " * 6
Points = dict[str, list[float]]
Sweep = Callable[..., RunResult]


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Sweep]:
    """A `pelton serve pelton-tiny`, and the function that sweeps it."""
    command = [sys.executable, "-m", "pelton.cli", "serve", "pelton-tiny", "--port", "0", "--device", "cpu",
               "--num-threads", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Ready: "), line
            yield lambda *given: sweep(line.split()[-1], folder, *given)
        finally:
            process.terminate()


def sweep(url: str, folder: Path, *options: str) -> RunResult:
    command = [sys.executable, "-m", "pelton.cli", "bench", "sweep", url, "--no-calibrate", "--json", "--output-dir",
               str(folder / "sweep"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_result(folder / "sweep" / "results.json")


def repeated_text(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """Time to first token over prompt size, with prompts of their own and with one text over and over."""
    (folder / "text").write_text(TEXT)
    seen = {}
    with server(folder) as ask:
        for name, options in (("every prompt its own", ()),
                              ("one text, repeated", ("--prompt-repeat-text", str(folder / "text")))):
            result = ask("--concurrency", "1", "--prompt-tokens", "64,256,512,768,1024,1280,1536", "--output-tokens",
                         "2", "--num-requests", "12", *options)
            cells = [(c.distribution("prompt_tokens").p50, c.distribution("ttft").p50) for c in result.cells]
            seen[name] = {"x": [x for x, _ in cells], "y": [y for _, y in cells]}
    figure = lines(seen, "tokens of the prompt, by the server's count", "median time to first token (ms)", marked=True)
    return Plot("trap-repeated-text", "A repeated text comes out of the prefix cache", "", {"": figure}), seen


def collapsed_sizes(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """The size of prompts over the size asked for, below and above a long template."""
    (folder / "text").write_text(TEXT)
    own = files("pelton") / "models_data" / "pelton-tiny" / "chat_template.jinja"
    (folder / "template.jinja").write_text(SYSTEM + own.read_text())
    asked = [16, 32, 64, 96, 128, 192, 256]
    with server(folder, "--chat-template", str(folder / "template.jinja")) as ask:
        result = ask("--concurrency", "1", "--prompt-tokens", ",".join(map(str, asked)), "--output-tokens", "2",
                     "--num-requests", "10", "--prompt-repeat-text", str(folder / "text"))
    seen = {"what the server counted": {"x": asked, "y": [c.distribution("prompt_tokens").p50 for c in result.cells]},
            "what was asked for": {"x": asked, "y": asked}}
    figure = lines(seen, "tokens asked for", "tokens of the prompt", marked=True)
    figure["data"][1]["line"] = {"dash": "dash"}
    return Plot("trap-sizes", "Sizes under the template are one size", "", {"": figure}), seen


def unreached_concurrency(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """Requests in flight over time at "concurrency 64"."""
    seen = {}
    with server(folder) as ask:
        for count in (32, 256):
            result = ask("--concurrency", "64", "--prompt-tokens", "64", "--output-tokens", "32", "--num-requests",
                         str(count), "--num-warmup", "0")
            changes = sorted([(r.sent_us, 1) for r in result.requests] + [(r.end_us, -1) for r in result.requests])
            counts, at = [0], [0.0]
            for time_us, change in changes:
                at.append((time_us - changes[0][0]) / 1e6)
                counts.append(counts[-1] + change)
            seen[f"{count} requests"] = {"x": at, "y": counts}
    last = max(points["x"][-1] for points in seen.values())
    seen["asked for"] = {"x": [0, last], "y": [64, 64]}
    figure = lines(seen, "seconds since the first request", "requests in flight")
    for trace in figure["data"][:2]:
        trace["line"] = {"shape": "hv"}
    figure["data"][2]["line"] = {"dash": "dash"}
    return Plot("trap-concurrency", "Concurrency 64 with 32 requests is at most 32", "", {"": figure}), seen


def coordinated_omission(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """Latency from sending and from schedule where more is due than can be answered one at a time, by a quarter even of
    what the server does at its best."""
    sizes = ("--prompt-tokens", "128", "--output-tokens", "16")
    with server(folder) as ask:
        alone = ask("--concurrency", "1", "--num-requests", "20", *sizes).requests
        best_s = min(r.end_us - r.sent_us for r in alone) / 1e6
        result = ask("--request-rate", f"{1.25 / best_s:.3g}", "--arrivals", "constant", "--max-in-flight", "1",
                     "--num-requests", "80", "--num-warmup", "0", *sizes)
    records = sorted(result.requests, key=lambda r: r.scheduled_us)
    at = [(r.scheduled_us - records[0].scheduled_us) / 1e6 for r in records]
    seen = {"from the moment it was due": {"x": at, "y": [(r.end_us - r.scheduled_us) / 1e3 for r in records]},
            "from the moment it was sent": {"x": at, "y": [(r.end_us - r.sent_us) / 1e3 for r in records]}}
    figure = lines(seen, "seconds into the schedule at which the request was due", "latency (ms)")
    return Plot("trap-omission", "A client that waits for answers hides the waiting", "", {"": figure}), seen


def tail_of_twenty(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """The largest of each 20 requests, which is what a P99 of 20 comes to, beside the P99 of all."""
    with server(folder) as ask:
        result = ask("--concurrency", "4", "--prompt-tokens", "64-512", "--output-tokens", "8-16", "--num-requests",
                     "400")
    times = [(r.first_content_us - r.sent_us) / 1e3 for r in result.requests if r.is_ok and not r.is_warmup]
    groups = [times[at:at + 20] for at in range(0, len(times), 20)]
    numbers = [float(number) for number in range(1, len(groups) + 1)]
    known = result.cells[0].metrics["ttft"].distribution.percentiles["p99"]
    seen = {"P99 of 20 requests": {"x": numbers, "y": [percentile(sorted(group), 99) for group in groups]},
            f"P99 of all {len(times)}": {"x": [1, numbers[-1]], "y": [known.value] * 2},
            "P50 of 20 requests": {"x": numbers, "y": [statistics.median(group) for group in groups]}}
    figure = lines(seen, "number of the run of 20 requests", "time to first token (ms)")
    for trace in (figure["data"][0], figure["data"][2]):
        trace |= {"mode": "markers", "marker": {"symbol": ["circle"] * len(groups)}}
    return Plot("trap-tail", "The P99 of twenty requests is any number", "", {"": figure}), seen


def pause_between_requests(folder: Path) -> tuple[Plot, dict[str, Points]]:
    """What a client's pause before its next request does to the mean time to first token, on servers of other steps.

    A step takes --fixed-ms, and longer by its prompt tokens: 23 us each of an 8B model on an H200.
    """
    servers = {"decode steps of 4.4 ms, prompts of 35 ms": ("4.4", "1500", "600"),
               "decode steps of 100 ms, prompts of 5 ms": ("100", "256", "700")}
    pauses = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0]
    seen = {}
    for name, (fixed_ms, input_len, tflops) in servers.items():
        means = []
        for pause_ms in pauses:
            found = [Simulation(make_parser().parse_args(
                ["--in-flight", "8", "--num-requests", "408", "--output-len", "16-32", "--input-len", input_len,
                 "--fixed-ms", fixed_ms, "--eager-ms", "0", "--gflop-per-token", "14", "--tflops", tflops,
                 "--server-ms", "0.5", "--pause-ms", str(pause_ms), "--seed", str(seed)]), 2048).run()["ttft_mean"]
                for seed in range(4)]
            means.append(statistics.fmean(found))
        seen[name] = {"x": pauses, "y": [100 * (mean / means[0] - 1) for mean in means]}
    figure = lines(seen, "pause of the client between an answer and its next request (ms)",
                   "mean time to first token against that without a pause, %", marked=True)
    figure["layout"]["yaxis"]["rangemode"] = "normal"
    return Plot("trap-pause", "A client that pauses meets another step", "", {"": figure}), seen


def lines(seen: dict[str, Points], x: str, y: str, *, marked: bool = False) -> Figure:
    """A line for each name."""
    data: list[Trace] = []
    for series, (name, points) in enumerate(seen.items()):
        more: dict[str, Any] = {}
        if marked:
            more = {"mode": "lines+markers", "marker": {"symbol": ["circle"] * len(points["x"])}}
        data.append(line(name, series, points["x"], points["y"], **more))
    return {"data": data, "layout": {"xaxis": {"title": {"text": x}, "rangemode": "tozero"},
                                     "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}}


TRAPS = {"repeated-text": repeated_text, "sizes": collapsed_sizes, "concurrency": unreached_concurrency,
         "omission": coordinated_omission, "tail": tail_of_twenty, "pause": pause_between_requests}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the pictures")
    parser.add_argument("--only", default=",".join(TRAPS), help="of " + ",".join(TRAPS))
    parser.add_argument("--png", action="store_true")
    parser.add_argument("--output")
    args = parser.parse_args()
    drawn = {}
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            plot, drawn[name] = TRAPS[name](Path(folder))
        for kind in ("svg", "png") if args.png else ("svg",):
            for file, content in pictures([plot], kind):
                (args.folder / file).write_bytes(content)
                print(args.folder / file, file=sys.stderr)
    print_json({"name": "trap_pictures", **environment(), "drawn": drawn}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
