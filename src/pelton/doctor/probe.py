"""The one place where doctor touches the machine. Tests put another object in its place.

Torch is imported in a process of its own: a broken build can end that one, not doctor.
"""

from __future__ import annotations

import functools
import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

from pelton.doctor.facts import Driver, Torch, UnavailableError

TORCH_TIMEOUT_S = 120
HUB_TIMEOUT_S = 4

_ASK_TORCH = """
import json, sys
import torch
facts = {"version": torch.__version__, "cuda_version": torch.version.cuda, "is_available": False}
if torch.version.cuda:
    try:
        torch.cuda.init()
        n = torch.cuda.device_count()
        facts.update(is_available=n > 0, architectures=torch.cuda.get_arch_list(),
                     capabilities=[torch.cuda.get_device_capability(i) for i in range(n)],
                     peers=[(i, j) for i in range(n) for j in range(n)
                            if i != j and torch.cuda.can_device_access_peer(i, j)])
        if n:
            torch.ones(8, device="cuda").sum().item()
    except Exception as error:
        facts.update(is_available=False, error=str(error).strip().splitlines()[0])
print("\\n" + json.dumps(facts))
"""


class Probe:
    """Questions to the machine; each is asked at most once."""

    def python_version(self) -> tuple[int, int, int]:
        return sys.version_info[:3]

    def system(self) -> str:
        """"Linux" or "Darwin"."""
        return platform.system()

    def glibc_version(self) -> tuple[int, int] | None:
        """None where the C library is another."""
        name, version = platform.libc_ver()
        parts = version.split(".")
        return (int(parts[0]), int(parts[1])) if name == "glibc" and len(parts) >= 2 else None

    def environ(self, name: str) -> str | None:
        return os.environ.get(name)

    def read_text(self, path: str) -> str:
        """A file's text; nothing where it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def can_access(self, path: str) -> bool:
        """Whether this user may read and write it."""
        return os.access(path, os.R_OK | os.W_OK)

    def glob(self, pattern: str) -> list[str]:
        return sorted(glob.glob(os.path.expanduser(pattern)))

    def which(self, command: str) -> str | None:
        return shutil.which(command)

    def version_of(self, distribution: str) -> str | None:
        """Installed version of a Python distribution."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def requires(self, distribution: str) -> list[str]:
        """Its declared dependencies, as PEP 508 strings."""
        try:
            return importlib.metadata.requires(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            return []

    def package_dir(self, package: str) -> str | None:
        """Folder of an importable package; it is not imported."""
        spec = importlib.util.find_spec(package)
        return str(Path(spec.origin).parent) if spec and spec.origin else None

    def python_headers(self) -> str:
        """Where Python.h of this interpreter belongs."""
        return str(Path(sysconfig.get_path("include")) / "Python.h")

    def limit(self, name: str) -> tuple[int, int]:
        """(soft, hard) of a resource limit, as "RLIMIT_NOFILE"; -1 is unlimited."""
        return resource.getrlimit(getattr(resource, name))

    def disk(self, path: str) -> tuple[int, int]:
        """(free, total) bytes of the file system a path is or would be on."""
        usage = shutil.disk_usage(self.existing_parent(path))
        return usage.free, usage.total

    def can_write(self, path: str) -> bool:
        """Whether files can be made at or under a path that need not exist yet."""
        return os.access(self.existing_parent(path), os.W_OK | os.X_OK)

    def existing_parent(self, path: str) -> str:
        place = Path(path).expanduser().absolute()
        while not place.exists():
            place = place.parent
        return str(place)

    def reach(self, url: str) -> float:
        """Seconds until a server answers at all, whatever it says.

        Raises:
            UnavailableError: it does not.
        """
        start = time.monotonic()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S):
                pass
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError) as error:
            raise UnavailableError(str(getattr(error, "reason", error))) from None
        return time.monotonic() - start

    @functools.cached_property
    def _driver(self) -> Driver | UnavailableError:
        from pelton.doctor.nvml import read_driver

        try:
            return read_driver()
        except UnavailableError as error:
            return error

    def driver(self) -> Driver:
        """The NVIDIA driver and its GPUs.

        Raises:
            UnavailableError: there is none, or it does not answer.
        """
        if isinstance(self._driver, UnavailableError):
            raise self._driver
        return self._driver

    @functools.cached_property
    def _torch(self) -> Torch | UnavailableError:
        if importlib.util.find_spec("torch") is None:
            return UnavailableError("not installed")
        try:
            done = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False,
                                  timeout=TORCH_TIMEOUT_S, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return UnavailableError(f"importing it took longer than {TORCH_TIMEOUT_S} s")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            how = f"killed by signal {-done.returncode}" if done.returncode < 0 else "importing it failed"
            return UnavailableError(f"{how}: {lines[-1].strip()}" if lines else how)
        return parse_torch(done.stdout.splitlines()[-1])

    def torch(self) -> Torch:
        """Torch's build and what it sees.

        Raises:
            UnavailableError: it is not installed ("not installed") or cannot be imported.
        """
        if isinstance(self._torch, UnavailableError):
            raise self._torch
        return self._torch


def parse_torch(line: str) -> Torch:
    """Reads the JSON line that the torch process printed."""
    facts = json.loads(line)
    for name in ("capabilities", "peers"):
        facts[name] = tuple(tuple(pair) for pair in facts.get(name, ()))
    facts["architectures"] = tuple(facts.get("architectures", ()))
    return Torch(**facts)
