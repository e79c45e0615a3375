"""A rehearsal of an engine that does not exist yet, on the GPU it is built for: `python -m pelton.runner.rehearsal`.

Measures the kernels of each product, then starts a runner over made-up weights with these choices and the engine's
limits, so that every kernel it may launch gets compiled, and keeps those. `build` starts it in a process of its own,
while it writes the weights: what is on the GPU is gone when it ends, and nothing here needs the weights' values.

Says how it goes in JSON lines on standard output, each of one key:

    {"setting": {...}, "num_missing": 35}    where it runs, and how many measurements it will make
    {"measured": {...}}                      one measurement
    {"limits": {...}}                        what shares of the limit refer to
    {"not_kept": "..."}                      why kernels that no product needs were not compiled
    {"kernels": 123}                         compiled kernels kept
    {"error": {"kind": ..., "message": ...}}
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelton.config import Dtype, ExecutorConfig, KvCacheConfig, ModelConfig, from_dict
from pelton.errors import CapacityError, PeltonError
from pelton.lifeline import end_with_parent
from pelton.manifest import Limits
from pelton.physics import find_hardware

if TYPE_CHECKING:
    import torch

    from pelton.kernels.linear.choices import Measurement
    from pelton.kernels.linear.tuning import Product


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to rehearse."""

    model: ModelConfig
    limits: Limits
    dtype: Dtype
    """Of weights and activations."""
    tp_size: int
    gpu_name: str
    driver: str
    known: list[dict[str, Any]]
    """Measurements that need not be made again, as in tuning.json."""
    kernels_dir: str | None
    """Where compiled kernels are kept; none: they are not."""


def rehearse(job: Job) -> None:
    """Runs a job on the first GPU."""
    from pelton.kernels import compiled

    if job.kernels_dir is None:
        measurements = measure(job)
        return
    folder = Path(job.kernels_dir)
    with compiled.kept_in(folder):  # with the candidates that lost: a few MB
        measurements = measure(job)
        start_runner(job, measurements)
    _say(kernels=compiled.num_kernels(folder))


def measure(job: Job) -> list[Measurement]:
    """Measures what is not known. Returns all."""
    import torch

    from pelton.kernels.gpu_features import gpu_features
    from pelton.kernels.linear.measured import Setting, read_measurements
    from pelton.kernels.linear.tuning import tune

    device = torch.device("cuda", torch.cuda.current_device())
    measurements = read_measurements(job.known)
    missing = missing_buckets(job, measurements)
    _say(setting=asdict(Setting.here(job.gpu_name, gpu_features(device).capability, job.driver)),
         num_missing=sum(map(len, missing.values())))
    read_tb_per_s, matrix_tflop_per_s = _limits(job, device)
    for product, buckets in missing.items():
        measurements += tune([product], buckets, device=device, dtype=getattr(torch, job.dtype),
                             read_tb_per_s=read_tb_per_s, matrix_tflop_per_s=matrix_tflop_per_s,
                             on_result=lambda measurement: _say(measured=measurement.to_json()))
    torch.cuda.empty_cache()
    return measurements


def start_runner(job: Job, measurements: list[Measurement]) -> None:
    """Starts the runner over made-up weights, as the engine's will be, so that it loads all its kernels."""
    from pelton.kernels.linear.triton import use_measurements
    from pelton.runner.runner import Runner

    use_measurements(measurements)
    # Kernels do not depend on the number of blocks; one sequence of full length must fit.
    num_blocks = -(-job.limits.max_seq_len // job.limits.tokens_per_block) + 1
    config = ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(max_blocks=num_blocks))
    try:
        Runner.from_config(dataclasses.replace(job.model, dtype=job.dtype), job.limits, config).close()
    except CapacityError as error:  # another program may hold the memory that the engine will have
        _say(not_kept=str(error))


def missing_buckets(job: Job, known: list[Measurement]) -> dict[Product, list[int]]:
    """The products of the model with the buckets of rows that its steps can reach and that are not measured."""
    from pelton.kernels.linear.choices import ROW_BUCKETS
    from pelton.kernels.linear.tuning import model_products

    have = {(measurement.shape, measurement.num_rows) for measurement in known}
    last = next((bucket for bucket in ROW_BUCKETS if bucket >= job.limits.max_num_tokens), ROW_BUCKETS[-1])
    missing = {product: [bucket for bucket in ROW_BUCKETS if bucket <= last and (product.shape, bucket) not in have]
               for product in model_products(job.model, tp_size=job.tp_size)}
    return {product: buckets for product, buckets in missing.items() if buckets}


def _limits(job: Job, device: torch.device) -> tuple[float, float]:
    """(TB/s of reading, TFLOP/s of matrix products) of the GPU, from the table or else measured here."""
    try:
        hardware = find_hardware(job.gpu_name)
        read, matrix = hardware.bandwidth, hardware.peak_flops("float32" if job.dtype == "float32" else "bf16")
        source = f"pelton/physics.py, {hardware.name}"
    except PeltonError:
        read, matrix = _measure_limits(job.dtype, device)
        source = "measured: int64 sum over 2 GiB, library matrix product of 8,192 cubed"
    _say(limits={"read_tb_per_s": read / 1e12, "matrix_tflop_per_s": matrix / 1e12, "source": source})
    return read / 1e12, matrix / 1e12


def _measure_limits(dtype: Dtype, device: torch.device) -> tuple[float, float]:
    """Bytes/s and FLOP/s."""
    import torch

    numbers = torch.ones(2**28, dtype=torch.int64, device=device)
    matrix = torch.randn(8192, 8192, dtype=getattr(torch, dtype), device=device)

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            call()
            torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        return min(times)

    return numbers.nbytes / best(numbers.sum), 2 * 8192**3 / best(lambda: matrix @ matrix)


def _say(**news: Any) -> None:
    print(json.dumps(news), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the job of `--job`, a file of JSON; an error of ours goes to standard output, with exit code 1."""
    parser = argparse.ArgumentParser(prog="pelton.runner.rehearsal")
    parser.add_argument("--job", type=Path, required=True)
    args = parser.parse_args(argv)
    end_with_parent()
    try:
        rehearse(from_dict(Job, json.loads(args.job.read_bytes()), where=str(args.job)))
    except PeltonError as error:
        _say(error={"kind": type(error).__name__, "message": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
