"""Where and when a benchmark runs."""

from __future__ import annotations

import datetime
import os
import platform

import pelton
from pelton.bench.results import Environment


def describe_environment(command: str) -> Environment:
    """This machine and moment; `command` is the command line that asks for the same run."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Environment(pelton_version=pelton.__version__, python_version=platform.python_version(),
                       platform=platform.platform(), num_cpus=num_cpus, command=command,
                       started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
