"""The set-up scripts: what they decide on made-up machines, with stand-ins for python3, pip, uv and nvidia-smi."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts/setup.sh", ROOT / "scripts/setup-system.sh", ROOT / ".ci/run"]

# Stands in for python3 and for the environment's python. What is "installed" are lines in $STATE/torch and
# $STATE/packages; what pip and uv can get is in $STATE/pip-cpu, pip-plain, uv-cpu and uv-auto: the torch they install.
FAKE_PYTHON = r"""#!/bin/bash
log() { echo "$*" >>"$STATE/log"; }
give() {  # give SOURCE: install the torch that this source has
    [[ -s $STATE/$1 ]] || { echo "ERROR: no matching distribution" >&2; return 1; }
    cat "$STATE/$1" >"$STATE/torch"
}
case "$*" in
--version) echo "Python $(cat "$STATE/version")" ;;
"-c import sys"*) [[ $(cat "$STATE/version") == 3.1[1-9]* ]] ;;
"-c import venv"*) [[ ! -e $STATE/no-venv ]] ;;
"-m venv "*) log "venv $3"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip --version") ;;
"-m pip list"*) cat "$STATE/packages" 2>/dev/null ;;
"-m pip install"*" uv") log "pip uv"; cp "$STATE/uv" "$(dirname "$0")/uv" ;;
"-m pip install"*"torch==2.13.0+cpu") log "pip torch+cpu"; give pip-cpu ;;
"-m pip install"*"torch>=2.11,<2.14") log "pip torch"; give pip-plain ;;
"-m pip install"*"--editable .[engine,dev]")
    while [[ $1 != --constraint ]]; do shift; done
    log "pip pelton $(cat "$2")"; [[ ! -e $STATE/no-pelton ]] ;;
"-P - torch"*) cat >/dev/null; cat "$STATE/torch" 2>/dev/null ;;
"-P - "*) cat >/dev/null; echo "state $(cksum <pyproject.toml) $3" ;;
*) echo "unexpected: python $*" >&2; exit 99 ;;
esac
"""
FAKE_UV = r"""#!/bin/bash
echo "uv $*" | sed 's/ --python [^ ]*//' >>"$STATE/log"
case "$*" in *--torch-backend=cpu*) source=uv-cpu ;; *) source=uv-auto ;; esac
[[ -s $STATE/$source ]] || { echo "error: cannot fetch" >&2; exit 1; }
cat "$STATE/$source" >"$STATE/torch"
"""
FAKE_SMI = r"""#!/bin/bash
case "$1" in
-L) echo "GPU 0: NVIDIA Test (UUID: GPU-0)" ;;
--query-gpu=driver_version) cat "$STATE/driver" ;;
esac
"""


class FakeMachine:
    """A copy of the scripts beside a PATH of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.bin, self.state = folder / "repo", folder / "bin", folder / "state"
        for path in (self.repo / "scripts", self.bin, self.state):
            path.mkdir(parents=True)
        shutil.copy(ROOT / "scripts/setup.sh", self.repo / "scripts/setup.sh")
        (self.repo / "pyproject.toml").write_text("[project]\n")
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed",
                     "tr"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.system = self.command("uname", "#!/bin/bash\necho Linux\n")
        self.command("python3", FAKE_PYTHON)
        self.set(version="3.11.2", uv=FAKE_UV)
        (self.state / "uv").chmod(0o755)

    def command(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def set(self, **facts: str) -> None:
        for name, text in facts.items():
            (self.state / name.replace("_", "-")).write_text(text)

    def add_gpu(self, driver: str = "580.65.06") -> None:
        self.command("nvidia-smi", FAKE_SMI)
        self.set(driver=driver + "\n")

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.state / "log").write_text("")
        return subprocess.run([str(self.bin / "bash"), "scripts/setup.sh"], cwd=self.repo, capture_output=True,
                              text=True, timeout=60,
                              env={"PATH": str(self.bin), "STATE": str(self.state), "HOME": "/nowhere", **environment})

    @property
    def steps(self) -> list[str]:
        return (self.state / "log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_strict(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    assert "set -euo pipefail" in script.read_text()


def test_cpu_machine_gets_the_wheel_pip_knows(machine):
    machine.set(pip_cpu="2.13.0+cpu cpu")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.steps == ["venv .venv", "pip torch+cpu", "pip pelton torch==2.13.0+cpu"]
    assert "done: .venv, torch 2.13.0+cpu" in done.stdout


def test_cpu_machine_asks_uv_next(machine):
    machine.set(uv_cpu="2.13.0+cpu cpu")
    assert machine.setup().returncode == 0
    assert machine.steps == ["venv .venv", "pip torch+cpu", "pip uv",
                             "uv pip install --quiet --torch-backend=cpu torch>=2.11,<2.14",
                             "pip pelton torch==2.13.0+cpu"]


def test_cpu_machine_never_falls_through_to_cuda(machine):
    machine.set(pip_plain="2.13.0 13.0")
    done = machine.setup()
    assert done.returncode != 0
    assert "no CPU build of torch could be had" in done.stderr
    assert "pip torch" not in machine.steps
    assert not (machine.repo / ".venv/.pelton-setup").exists()


def test_cuda_packages_on_a_cpu_machine_are_refused(machine):
    machine.set(pip_cpu="2.13.0+cpu cpu", packages="numpy==2.0\nnvidia-cublas==13.1\nnvidia-ml-py==13.0\n")
    done = machine.setup()
    assert done.returncode != 0
    assert "nvidia-cublas==13.1" in done.stderr
    assert "nvidia-ml-py" not in done.stderr
    machine.set(packages="nvidia-ml-py==13.0\n")
    assert machine.setup().returncode == 0


def test_cuda_build_on_a_cpu_machine_is_refused(machine):
    machine.set(uv_cpu="2.13.0 13.0")
    done = machine.setup()
    assert done.returncode != 0
    assert "has no GPU but torch 2.13.0 13.0 is a CUDA build" in done.stderr


def test_gpu_machine_gets_the_range(machine):
    machine.add_gpu()
    machine.set(pip_plain="2.13.0 13.0", pip_cpu="2.13.0+cpu cpu")
    assert machine.setup().returncode == 0
    assert machine.steps == ["venv .venv", "pip torch", "pip pelton torch==2.13.0"]


@pytest.mark.parametrize("driver", ["570.86.10", "535.10"])
def test_older_driver_gets_the_torch_for_it(machine, driver):
    machine.add_gpu(driver)
    machine.set(pip_plain="2.13.0 13.0", uv_auto="2.13.0+cu126 12.6")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.steps[1:] == ["pip uv", "uv pip install --quiet --torch-backend=auto torch>=2.11,<2.14",
                                 "pip pelton torch==2.13.0+cu126"]


def test_gpu_machine_does_not_keep_a_cpu_build(machine):
    machine.add_gpu()
    machine.set(pip_plain="2.13.0+cpu cpu", uv_auto="2.13.0+cu130 13.0")
    assert machine.setup().returncode == 0
    assert "uv pip install --quiet --reinstall --torch-backend=auto torch>=2.11,<2.14" in machine.steps
    machine.set(torch="2.13.0+cpu cpu")
    (machine.repo / "pyproject.toml").write_text("[project]\n# changed\n")
    assert machine.setup().returncode == 0
    assert (machine.state / "torch").read_text() == "2.13.0+cu130 13.0"


def test_macos_takes_the_plain_build(machine):
    machine.system.write_text("#!/bin/bash\necho Darwin\n")
    machine.set(pip_plain="2.13.0 cpu")
    assert machine.setup().returncode == 0
    assert machine.steps[1] == "pip torch"


def test_second_run_does_nothing_until_something_changes(machine):
    machine.set(pip_cpu="2.13.0+cpu cpu")
    assert machine.setup().returncode == 0
    done = machine.setup()
    assert "up to date" in done.stdout
    assert machine.steps == []
    (machine.repo / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert machine.setup().returncode == 0
    assert machine.steps == ["pip pelton torch==2.13.0+cpu"], "the torch that is there is kept"


def test_run_that_fails_is_not_taken_for_done(machine):
    machine.set(pip_cpu="2.13.0+cpu cpu", no_pelton="")
    done = machine.setup()
    assert done.returncode != 0
    assert "installing pelton failed" in done.stderr
    (machine.state / "no-pelton").unlink()
    assert machine.setup().returncode == 0
    assert machine.steps == ["pip pelton torch==2.13.0+cpu"]


def test_environment_can_stand_elsewhere(machine, tmp_path):
    machine.set(pip_cpu="2.13.0+cpu cpu")
    assert machine.setup(PELTON_VENV=str(tmp_path / "env")).returncode == 0
    assert (tmp_path / "env/.pelton-setup").exists()
    assert not (machine.repo / ".venv").exists()


def test_python_too_old_absent_or_without_venv(machine):
    machine.set(version="3.10.4")
    done = machine.setup()
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed, found Python 3.10.4" in done.stderr
    machine.set(version="3.12.0", no_venv="")
    done = machine.setup()
    assert "apt-get install python3-venv" in done.stderr
    (machine.bin / "python3").unlink()
    done = machine.setup()
    assert done.returncode != 0
    assert "no python3 found" in done.stderr


def test_a_newer_python_is_found_beside_an_old_one(machine):
    machine.set(pip_cpu="2.13.0+cpu cpu")
    machine.command("python3.12", FAKE_PYTHON)
    machine.command("python3", "#!/bin/bash\n[[ $1 == --version ]] && echo Python 3.9.1\n")
    assert machine.setup().returncode == 0


# --- setup-system.sh


@pytest.fixture
def system(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*, uid: int, commands: dict[str, str]) -> subprocess.CompletedProcess[str]:
        for name, text in {"id": f"echo {uid}", **commands}.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        return subprocess.run([shutil.which("bash"), str(ROOT / "scripts/setup-system.sh")], capture_output=True,
                              text=True, env={"PATH": str(tmp_path)}, timeout=30)

    return run


def test_system_packages_that_are_here_need_nothing(system):
    done = system(uid=1000, commands={"chromium": "", "prometheus": ""})
    assert done.returncode == 0
    assert "are here" in done.stdout


def test_system_packages_without_rights_say_what_to_run(system):
    done = system(uid=1000, commands={"apt-get": "echo ran", "sudo": "exit 1", "prometheus": ""})
    assert done.returncode == 1
    assert "run: sudo apt-get install --no-install-recommends chromium\n" in done.stdout
    assert "ran" not in done.stdout


def test_system_packages_without_apt(system):
    done = system(uid=0, commands={})
    assert done.returncode == 1
    assert "install by hand: chromium prometheus" in done.stdout


# --- Makefile and CI


def test_make_help_lists_every_target():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True,
                          timeout=30, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert listed == set(phony.split()[1:])
    assert {"demo", "test", "lint", "serve", "bench", "test-gpu"} <= listed


def test_scripts_can_be_run():
    for script in SCRIPTS:
        assert os.access(script, os.X_OK), script


# --- demo.py


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeServer(BaseHTTPRequestHandler):
    """Answers as `pelton serve` does, with fixed text."""

    status = 200

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "m"
        assert body["stream"] is True
        events = [{"choices": [{"text": text}]} for text in ("return ", "", "42")] + [{"choices": []}]
        self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def _send(self, text: str) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def port():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_demo_prints_pieces_as_they_come(demo, port, capsys):
    demo.ask(port)
    out = capsys.readouterr().out
    assert "return 42" in out
    assert "2 pieces" in out


def test_demo_reports_what_the_server_refuses(demo, port, monkeypatch):
    monkeypatch.setattr(FakeServer, "status", 400)
    monkeypatch.setattr(demo, "served_model", lambda port: "m")
    with pytest.raises(demo.DemoError, match="answered 400"):
        demo.ask(port)


def fake_pelton(folder: Path, text: str) -> str:
    path = folder / "pelton"
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_demo_stops_its_server_when_a_step_fails(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path)
    monkeypatch.setattr(demo, "PELTON", fake_pelton(
        tmp_path, f'trap "echo stopped >{tmp_path}/end; exit" TERM\necho 1234 >{tmp_path}/new; '
                  f'mv {tmp_path}/new {tmp_path}/port; while :; do sleep 0.05; done'))

    def fail(port: int) -> None:
        raise ConnectionError(port)

    with pytest.raises(ConnectionError, match="1234"), demo.server(tmp_path / "engine") as port:
        fail(port)
    assert (tmp_path / "end").read_text() == "stopped\n"


def test_demo_tells_why_the_server_did_not_start(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path)
    monkeypatch.setattr(demo, "PELTON", fake_pelton(tmp_path, "echo port taken >&2; exit 3"))
    with pytest.raises(demo.DemoError, match=r"exit code 3:\nport taken"), demo.server(tmp_path / "engine"):
        pytest.fail("never ready")


def test_demo_ends_at_the_first_step_that_fails(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "OUT", tmp_path / "demo")
    monkeypatch.setattr(demo, "PELTON", fake_pelton(tmp_path, "exit 1"))
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    assert demo.main() == 1
    assert "`pelton doctor` ended with exit code 1" in capsys.readouterr().err
