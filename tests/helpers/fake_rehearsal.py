"""The rehearsal of an engine where there is no GPU: times are made up, and what is compiled is not run.

With FAKE_REHEARSAL set to "fail" it ends with an error of ours, with "die" at once, with "hang" never by itself.
"""

from __future__ import annotations

import os
import sys
import threading

import torch

from helpers import kept_kernels
from pelton.errors import ConfigError
from pelton.kernels import gpu_features
from pelton.kernels.linear import tuning
from pelton.kernels.linear.choices import Measurement
from pelton.runner import rehearsal


def tune(products, buckets, *, on_result, **options):
    assert options["read_tb_per_s"] == 4.58
    measurements = [Measurement(n=p.shape.n, k=p.shape.k, is_gated=p.shape.is_gated, num_rows=bucket, kernel="library",
                                config={}, fuses_norm=False, us=2.0 * bucket, tb_per_s=1.0, tflop_per_s=3.0,
                                share_of_limit=0.25) for p in products for bucket in buckets]
    for measurement in measurements:
        on_result(measurement)
    return measurements


def start_runner(job, measurements):
    assert measurements
    match os.environ.get("FAKE_REHEARSAL"):
        case "fail":
            raise ConfigError("device: the GPU is on strike")
        case "die":
            os._exit(3)
        case "hang":
            threading.Event().wait()
    kept_kernels.compile_both()


torch.cuda.current_device = lambda: 0
gpu_features.gpu_features = lambda device: gpu_features.GpuFeatures(90, 132, 227 * 1024)
tuning.tune = tune
rehearsal.start_runner = start_runner

if __name__ == "__main__":
    sys.exit(rehearsal.main())
