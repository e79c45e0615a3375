"""How long an engine takes to be built on a GPU, and to load: by phases, in processes of their own.

    python benchmarks/random_checkpoint.py CHECKPOINT
    python benchmarks/gpu_build.py CHECKPOINT --work FOLDER [--output FILE]

First the rate of hashing; then `pelton build` with empty caches (measurements, Triton's), the engine loaded as the
engine process does, twice (with an empty cache of Triton's, so that every kernel must come from the engine, and with
the user's), and the build again with what the first left in the caches. The checkpoint has been read before, so its
pages are in memory. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import os
import pstats
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import environment, print_json

from pelton.hashing import CHUNK_BYTES


def run(command: list[str], work: Path, *, triton_cache: str) -> tuple[float, str]:
    """Seconds and standard output of a command with its caches in `work`."""
    caches = {"PELTON_CACHE": str(work / "pelton"), "TRITON_CACHE_DIR": str(work / triton_cache)}
    began = time.perf_counter()
    done = subprocess.run(command, env=os.environ | caches, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def hash_rates(num_threads: int = 16) -> dict[str, Any]:
    """GB/s of hashing chunks of 16 MiB, by the hash that engines use and the one it replaced."""
    chunks = [bytearray(CHUNK_BYTES) for _ in range(num_threads)]
    record: dict[str, Any] = {"name": "hashes", "num_threads": num_threads}
    for name in ("sha256", "blake2b"):
        with ThreadPoolExecutor(num_threads) as pool:
            began = time.perf_counter()
            list(pool.map(lambda index, name=name: getattr(hashlib, name)(chunks[index % num_threads]).digest(),
                          range(4 * num_threads)))
            seconds = time.perf_counter() - began
        record[f"{name}_gb_per_s"] = round(4 * num_threads * CHUNK_BYTES / seconds / 1e9, 2)
    return record


def build(checkpoint: Path, work: Path, name: str) -> dict[str, Any]:
    seconds, out = run([sys.executable, "-m", "pelton.cli", "build", str(checkpoint), "-o", str(work / "engine"),
                        "--device", "cuda", "--json"], work, triton_cache="triton")
    summary = json.loads(out)
    choices = summary["tuning"]["choices"]
    return {"name": name, "seconds": round(seconds, 2), "num_choices": len(choices), "gpu": summary["gpu_name"],
            "num_kernels": summary["num_kernels"], "num_bytes": summary["num_bytes"], "choices": choices}


def load(work: Path, name: str, triton_cache: str, *options: str) -> dict[str, Any]:
    seconds, out = run([sys.executable, __file__, "--load", str(work / "engine"), *options], work,
                       triton_cache=triton_cache)
    *told, line = out.strip().splitlines()
    print(*told, sep="\n", file=sys.stderr)
    return {"name": name, "process_s": round(seconds, 2), **json.loads(line)}


def load_here(engine: Path, *, is_profiled: bool) -> None:
    """Loads an engine and makes one token; prints the seconds of each phase as JSON."""
    marks = {"start": time.perf_counter()}
    from pelton.engine.wake import wake_driver

    wake_driver()

    def timed(owner: Any, function: str, name: str) -> None:
        inner = getattr(owner, function)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                marks[name] = marks.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, function, call)

    from pelton.config import ExecutorConfig
    from pelton.engine.assemble import loop_over
    from pelton.engine.executor import Executor
    from pelton.kernels import compiled
    from pelton.runner import load, tuning, upload, warmup
    from pelton.runner.runner import Runner
    from pelton.types import Request, SamplingParams

    imported = time.perf_counter()
    uploads: list[upload.WeightUpload] = []
    load.WeightUpload = lambda *args: uploads.append(upload.WeightUpload(*args)) or uploads[-1]
    timed(tuning, "use_tuning", "tuning_s")
    timed(load.LoadedEngine, "wait", "waited_for_weights_s")
    timed(Runner, "warm_up", "warm_up_s")
    timed(Runner, "capture_graphs", "capture_s")
    timed(warmup, "_run", "warm_up_steps_s")
    profile = cProfile.Profile()
    if is_profiled:
        profile.enable()
    config = ExecutorConfig(device="cuda")
    runner = Runner.from_engine(engine, config)
    profile.disable()
    ready = time.perf_counter()
    with Executor(loop_over(runner, config)) as executor:
        request = Request([7, 8, 9, 10], sampling_params=SamplingParams(max_tokens=1, ignore_eos=True))
        executor.run([request], lambda output: None)
        first = time.perf_counter()
    if is_profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    start = marks.pop("start")
    num_bytes = sum(path.stat().st_size for path in engine.glob("weights-*"))
    print(json.dumps({
        "import_s": round(imported - start, 2), "load_s": round(ready - imported, 2),
        **{name: round(seconds, 2) for name, seconds in marks.items()},
        "weights_s": round(uploads[0].seconds, 2), "weights_gb_per_s": round(num_bytes / uploads[0].seconds / 1e9, 2),
        "first_token_s": round(first - ready, 3),
        "kernels": vars(compiled.counts)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("out/gpu_build"))
    parser.add_argument("--load", type=Path, metavar="ENGINE", help="only load it, in this process")
    parser.add_argument("--profile", action="store_true", help="say where the last load's time goes")
    parser.add_argument("--keep", action="store_true", help="leave the engine there")
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.load:
        load_here(args.load, is_profiled=args.profile)
        return
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    parts = [
        hash_rates,
        lambda: build(args.checkpoint, args.work, "build, caches empty"),
        lambda: load(args.work, "load, Triton's cache empty", "triton-empty"),
        lambda: load(args.work, "load, Triton's cache the user's", "triton", *(["--profile"] * args.profile)),
        lambda: build(args.checkpoint, args.work, "build again"),
    ]
    records = []
    for part in parts:
        records.append(part())
        print(json.dumps({key: value for key, value in records[-1].items() if key != "choices"}), file=sys.stderr)
    if not args.keep:
        shutil.rmtree(args.work)
    print_json({"benchmark": "gpu_build", "records": records, "environment": environment()}, args.output)


if __name__ == "__main__":
    main()
