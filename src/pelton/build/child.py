"""A build in a process of its own: what it needs (torch) is gone with it, which a server is glad of."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pelton.build.layout import Device, Tuning
from pelton.build.write import build
from pelton.config import BuildConfig, ParallelConfig, from_dict, to_dict
from pelton.errors import EngineDeadError, PeltonError, error_of_kind, missing_part
from pelton.lifeline import end_with_parent
from pelton.manifest import Manifest, read_manifest


def build_in_child(source: Path, out: Path, options: BuildConfig, *, parallel: ParallelConfig,
                   device: Device, source_name: str, revision: str | None, show_progress: bool, remedy: str,
                   tuning: Tuning = "auto") -> Manifest:
    """`build.write.build` in another process; progress goes to this one's stderr.

    Raises:
        As `build`. MissingPartError: torch is not installed. EngineDeadError: the process died.
    """
    job = {"source": str(source), "out": str(out), "device": device, "tuning": tuning, "source_name": source_name,
           "revision": revision, "show_progress": show_progress, "remedy": remedy}
    command = [sys.executable, "-P", "-m", "pelton.build.child", "--options", json.dumps(to_dict(options)),
               "--parallel", json.dumps(to_dict(parallel)), "--job", json.dumps(job)]
    # The pipe to its standard input is its lifeline. A session of its own: Ctrl-C is for this process alone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        try:
            answer = process.stdout.read()
            code = process.wait()
        except BaseException:
            process.terminate()  # it cleans up; the end of the block waits for it
            raise
    if code == 0:
        return read_manifest(out)
    error = _read_error(answer)
    raise error or EngineDeadError(f"the build ended with code {code}; what it said is above")


def _read_error(answer: str) -> PeltonError | None:
    try:
        told: dict[str, Any] = json.loads(answer)
        return error_of_kind(told["kind"], told["message"])
    except (ValueError, KeyError, TypeError):
        return None


def main(argv: list[str] | None = None) -> int:
    """Builds; an error of ours goes to standard output as JSON, with exit code 1."""
    parser = argparse.ArgumentParser(prog="pelton.build.child")
    for name in ("options", "parallel", "job"):
        parser.add_argument(f"--{name}", type=json.loads, required=True)
    args = parser.parse_args(argv)
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt: what was begun is removed
    job = args.job
    try:
        build(Path(job.pop("source")), Path(job.pop("out")), from_dict(BuildConfig, args.options),
              parallel=from_dict(ParallelConfig, args.parallel), **job)
    except ModuleNotFoundError as error:
        missing = missing_part(error)
        if missing is None:
            raise
        return _tell(missing)
    except PeltonError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(error: PeltonError) -> int:
    print(json.dumps({"kind": type(error).__name__, "message": str(error)}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
