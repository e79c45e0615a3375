"""Each check against a made-up machine, healthy and not."""

from __future__ import annotations

import importlib
import io
import json
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from pelton.doctor import nvml, probe, run
from pelton.doctor.checks import torch as torch_check
from pelton.doctor.facts import Driver, Gpu, GpuProcess, Torch, UnavailableError
from pelton.doctor.registry import CHECKS, run_checks
from pelton.doctor.result import Result

GIB = 2**30
H200 = Gpu(index=0, name="NVIDIA H200", total_bytes=140 * GIB, used_bytes=GIB // 2, clock_mhz=345, max_clock_mhz=1980)
CUDA_TORCH = Torch(version="2.13.0", cuda_version="13.0", is_available=True, capabilities=((9, 0),),
                   architectures=("sm_75", "sm_80", "sm_90", "sm_100", "compute_120"))
CPU_TORCH = Torch(version="2.13.0+cpu", cuda_version=None)


def driver_of(*gpus: Gpu, version: str = "580.65.06", cuda: tuple[int, int] = (13, 0), **options: object) -> Driver:
    return Driver(version=version, cuda_version=cuda, gpus=gpus, peers=options.get("peers", {}))


@dataclass
class Machine:
    """A probe that answers from fields: by default a healthy Linux machine with one H200."""

    python: tuple[int, int, int] = (3, 12, 1)
    os: str = "Linux"
    glibc: tuple[int, int] | None = (2, 36)
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=lambda: dict.fromkeys(
        ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/shm", "/py/Python.h",
         "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/site/triton/backends/nvidia/bin/ptxas"), ""))
    locked: set[str] = field(default_factory=set)
    commands: dict[str, str] = field(default_factory=lambda: {"gcc": "/usr/bin/gcc"})
    packages: dict[str, str] = field(default_factory=lambda: {"pelton": "0.1.0", "torch": "2.13.0", "triton": "3.7.1"})
    requirements: list[str] = field(default_factory=lambda: [
        "rich>=13,<16", 'torch>=2.11,<2.14; extra == "engine"', 'triton>=3.6,<3.8; extra == "engine"',
        'pytest>=8; extra == "dev"'])
    limits: dict[str, tuple[int, int]] = field(default_factory=lambda: {
        "RLIMIT_NOFILE": (65536, 65536), "RLIMIT_MEMLOCK": (-1, -1)})
    disks: dict[str, int] = field(default_factory=dict)
    unwritable: set[str] = field(default_factory=set)
    hub: float | str = 0.05
    gpu_driver: Driver | str = field(default_factory=lambda: driver_of(H200))
    torch_build: Torch | str = CUDA_TORCH

    def __post_init__(self) -> None:
        self.packages.setdefault("rich", "15.0")

    def python_version(self): return self.python
    def system(self): return self.os
    def glibc_version(self): return self.glibc
    def environ(self, name): return self.env.get(name)
    def read_text(self, path): return self.files.get(path, "")
    def exists(self, path): return path in self.files
    def can_access(self, path): return path not in self.locked
    def glob(self, pattern): return sorted(path for path in self.files if fnmatch(path, pattern))
    def which(self, command): return self.commands.get(command)
    def version_of(self, name): return self.packages.get(name)
    def requires(self, name): return self.requirements
    def package_dir(self, name): return f"/site/{name}" if name in self.packages else None
    def python_headers(self): return "/py/Python.h"
    def limit(self, name): return self.limits[name]
    def disk(self, path): return self.disks.get(path, 500 * GIB), 1000 * GIB
    def can_write(self, path): return path not in self.unwritable
    def existing_parent(self, path): return "/"

    def reach(self, url):
        if isinstance(self.hub, str):
            raise UnavailableError(self.hub)
        return self.hub

    def driver(self):
        if isinstance(self.gpu_driver, str):
            raise UnavailableError(self.gpu_driver)
        return self.gpu_driver

    def torch(self):
        if isinstance(self.torch_build, str):
            raise UnavailableError(self.torch_build)
        return self.torch_build


def cpu_machine(**options: object) -> Machine:
    options = {"files": {"/dev/shm": ""}, "gpu_driver": "NVML Shared Library Not Found", "torch_build": CPU_TORCH,
               **options}
    return Machine(**options)


def check(name: str, machine: Machine) -> list[Result]:
    return importlib.import_module(f"pelton.doctor.checks.{name}").check(machine)


def only(name: str, machine: Machine, *, status: str = "fail") -> Result:
    found = [result for result in check(name, machine) if result.status == status]
    assert len(found) == 1, check(name, machine)
    return found[0]


# --- whole machines


def test_healthy_gpu_machine_is_ok():
    results = run_checks(Machine())
    assert {result.status for result in results} == {"ok"}
    assert len(results) >= len(CHECKS) - 1


def test_machine_without_a_gpu_is_no_failure():
    results = run_checks(cpu_machine())
    assert {result.status for result in results} <= {"ok", "info"}
    assert Result("driver", "info", "no NVIDIA GPU: CPU only") in results


def test_every_check_stands_a_bare_machine():
    bare = Machine(files={}, commands={}, packages={}, requirements=[], gpu_driver="no", torch_build="not installed",
                   hub="no route", glibc=None, os="Darwin")
    assert not any("check itself failed" in result.found for result in run_checks(bare))


def test_a_check_that_breaks_is_a_result(monkeypatch):
    monkeypatch.setattr("pelton.doctor.checks.hub.check", lambda probe: 1 / 0)
    (result,) = run_checks(Machine(), ("hub",))
    assert result.status == "warn"
    assert "ZeroDivisionError" in result.found


# --- python, versions


@pytest.mark.parametrize(("version", "status"), [((3, 10, 2), "fail"), ((3, 11, 0), "ok"), ((3, 12, 9), "ok"),
                                                 ((3, 14, 0), "info")])
def test_python(version, status):
    assert check("python", Machine(python=version))[0].status == status


def test_packages_outside_the_declared_ranges():
    machine = Machine()
    machine.packages |= {"torch": "2.15.0", "rich": "12.0"}
    found = [result.found for result in check("versions", machine) if result.status == "warn"]
    assert found == ["rich 12.0; Pelton asks for <16,>=13", "torch 2.15.0; Pelton asks for <2.14,>=2.11"]


def test_missing_package_is_named():
    machine = Machine(packages={"torch": "2.13.0+cpu", "triton": "3.7.1"})
    del machine.packages["rich"]
    assert "rich is missing" in only("versions", machine, status="warn").found


def test_without_torch_the_engine_extra_is_not_asked_for():
    assert check("versions", Machine(packages={"pelton": "0.1.0"}))[0].status == "ok"
    torchless = Machine(packages={}, torch_build="not installed")
    assert check("torch", torchless)[0].status == "info"


@pytest.mark.parametrize(("torch", "triton", "fits"), [
    ("2.11.0+cu130", "3.6.0", True), ("2.13.0", "3.7.1", True), ("2.12.1", "3.7.0", True),
    ("2.11.0", "3.7.1", False), ("2.13.0+cpu", "3.6.0", False)])
def test_torch_and_triton_pairs(torch, triton, fits):
    machine = Machine()
    machine.packages |= {"torch": torch, "triton": triton}
    results = check("versions", machine)
    assert (results[0].status == "ok") is fits
    assert fits or "pip install 'triton==3." in results[0].mend


def test_other_known_bad_pairs():
    machine = Machine(glibc=(2, 17))
    machine.packages |= {"pynvml": "11.5.3"}
    found = " ".join(result.found for result in check("versions", machine))
    assert "pynvml 11.5" in found
    assert "glibc 2.17" in found
    machine.packages["pynvml"] = "13.0.1"
    assert "pynvml" not in " ".join(result.found for result in check("versions", machine))


def test_torch_range_is_the_packages_own():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["optional-dependencies"]["engine"]]
    (torch,) = [requirement for requirement in wanted if requirement.name == "torch"]
    assert torch.specifier == Requirement(f"torch{torch_check.TORCH_RANGE}").specifier


# --- torch and driver


def test_torch_that_cannot_be_imported():
    machine = Machine(torch_build="importing it failed: ImportError: libcudart.so.13: cannot open shared object file")
    assert "libcudart" in only("torch", machine).found


def test_cpu_build_beside_a_gpu():
    assert "CPU build, but this machine has 1 GPU" in only("torch", Machine(torch_build=CPU_TORCH)).found


def test_cuda_build_without_a_gpu_is_only_worth_knowing():
    assert check("torch", cpu_machine(torch_build=CUDA_TORCH))[0].status == "info"


@pytest.mark.parametrize(("error", "mend"), [
    ("CUDA driver version is insufficient for CUDA runtime version", "newer NVIDIA driver"),
    ("Error 802: system not yet initialized", "nvidia-fabricmanager"),
    ("CUDA error: out of memory", "free the GPU"),
    ("No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES"),
    ("CUDA error: no kernel image is available for execution on the device", "torch built for this GPU"),
    ("something new", "nvidia-smi"),
])
def test_torch_that_cannot_use_the_gpu(error, mend):
    broken = Torch(version="2.13.0", cuda_version="13.0", is_available=False, error=error)
    result = only("torch", Machine(torch_build=broken))
    assert error in result.found
    assert mend in result.mend


def test_gpus_hidden_on_purpose_are_no_failure():
    hidden = Torch(version="2.13.0", cuda_version="13.0", error="No CUDA GPUs are available")
    for value in ("", "-1"):
        assert check("torch", Machine(torch_build=hidden, env={"CUDA_VISIBLE_DEVICES": value}))[0].status == "info"
    assert check("torch", Machine(torch_build=hidden, env={"CUDA_VISIBLE_DEVICES": "5"}))[0].status == "fail"


@pytest.mark.parametrize(("capability", "covered"), [
    ((9, 0), True), ((8, 6), True), ((8, 9), True), ((7, 0), False), ((12, 0), True), ((10, 3), True), ((13, 0), True)])
def test_kernels_for_every_gpu(capability, covered):
    torch = Torch(version="2.13.0", cuda_version="13.0", is_available=True, capabilities=(capability,),
                  architectures=CUDA_TORCH.architectures)
    result = check("torch", Machine(torch_build=torch))[0]
    assert (result.status == "ok") is covered
    assert covered or f"no kernels for sm_{capability[0]}{capability[1]}" in result.found


@pytest.mark.parametrize(("driver", "cuda", "torch_cuda", "status"), [
    ("580.65.06", (13, 0), "13.0", "ok"), ("595.10", (13, 2), "13.0", "ok"), ("570.86", (12, 8), "13.0", "fail"),
    ("550.54", (12, 4), "12.8", "ok"), ("520.61", (11, 8), "12.8", "fail"), ("580.65", (13, 0), "13.1", "ok"),
    ("580.65", (13, 0), "14.0", "fail")])
def test_driver_against_torchs_cuda(driver, cuda, torch_cuda, status):
    torch = Torch(version="2.13.0", cuda_version=torch_cuda, is_available=True)
    result = check("driver", Machine(gpu_driver=driver_of(H200, version=driver, cuda=cuda), torch_build=torch))[0]
    assert result.status == status
    assert status == "ok" or "newer" in result.mend or "driver for CUDA" in result.mend


def test_driver_that_does_not_answer():
    mismatch = Machine(gpu_driver="Driver/library version mismatch")
    assert "reboot" in only("driver", mismatch).mend
    assert "user libraries" in only("driver", Machine(gpu_driver="Driver Not Loaded")).mend
    machine = Machine(gpu_driver="Unknown Error")
    machine.files["/.dockerenv"] = ""
    assert "restart the container" in only("driver", machine).mend


def test_gpu_on_the_bus_without_a_driver():
    pci = {"/sys/bus/pci/devices/0000:01:00.0": "", "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
           "/sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n"}
    assert "install the NVIDIA driver" in only("driver", cpu_machine(files=pci), status="warn").mend
    inside = cpu_machine(files={**pci, "/run/.containerenv": ""})
    assert "--device nvidia.com/gpu=all" in only("driver", inside, status="warn").mend


# --- GPUs and how they reach each other


def test_gpu_with_another_programs_memory():
    busy = Gpu(index=1, name="NVIDIA L40S", total_bytes=45 * GIB, used_bytes=20 * GIB,
               processes=(GpuProcess(pid=77, name="python", used_bytes=19 * GIB),))
    result = only("gpus", Machine(gpu_driver=driver_of(busy)), status="warn")
    assert result.name == "gpu 1"
    assert "python (pid 77, 19.0 GiB)" in result.found
    hidden = Gpu(index=0, name="NVIDIA L40S", total_bytes=45 * GIB, used_bytes=20 * GIB)
    assert "cannot be seen from here" in only("gpus", Machine(gpu_driver=driver_of(hidden)), status="warn").found


def test_gpu_that_is_slowed_down_or_split():
    hot = Gpu(index=0, name="NVIDIA L40S", total_bytes=45 * GIB, used_bytes=0, slowdowns=("too hot",), is_mig=True)
    assert "too hot" in only("gpus", Machine(gpu_driver=driver_of(hot)), status="warn").found
    assert "MIG" in only("gpus", Machine(gpu_driver=driver_of(hot)), status="info").found


@pytest.mark.parametrize(("value", "seen"), [("", "none"), ("-1", "none"), ("1", "only these"), ("0,2", "only these")])
def test_hidden_gpus_are_told(value, seen):
    assert seen in only("gpus", Machine(env={"CUDA_VISIBLE_DEVICES": value}), status="info").found


def pair_of(links: tuple[int, int], peers: dict[tuple[int, int], str],
            reached: tuple[tuple[int, int], ...] = ((0, 1), (1, 0))) -> Machine:
    gpus = [Gpu(index=i, name="NVIDIA H200", total_bytes=140 * GIB, used_bytes=0, num_nvlinks=n)
            for i, n in enumerate(links)]
    build = Torch(version="2.13.0", cuda_version="13.0", is_available=True, capabilities=((9, 0), (9, 0)),
                  architectures=("sm_90",), peers=reached)
    return Machine(gpu_driver=driver_of(*gpus, peers=peers), torch_build=build)


def test_gpus_that_reach_each_other():
    results = check("peers", pair_of((18, 18), {(0, 1): "ok", (1, 0): "ok"}))
    assert [(result.name, result.status) for result in results] == [("nvlink", "ok"), ("peers", "ok")]
    assert "18 active links" in results[0].found
    assert check("peers", Machine()) == [], "one GPU has no peers"


def test_gpus_that_do_not():
    blocked = pair_of((0, 0), {(0, 1): "the chipset does not support it", (1, 0): "ok"})
    assert [result.status for result in check("peers", blocked)] == ["info", "warn"]
    assert "no peer access from GPU 0 to 1: the chipset" in only("peers", blocked, status="warn").found
    assert "CUDA refuses it" in only("peers", pair_of((18, 18), {}, ((0, 1),)), status="warn").found
    assert "no active link on GPU 1" in only("peers", pair_of((4, 0), {}), status="warn").found


# --- container and compiler


@pytest.mark.parametrize(("marks", "kind", "mend"), [
    ({"files": {"/.dockerenv": ""}}, "Docker", "--gpus all"),
    ({"files": {"/run/.containerenv": ""}}, "Podman", "nvidia-ctk cdi"),
    ({"env": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}}, "Kubernetes", "nvidia.com/gpu: 1"),
    ({"files": {"/proc/1/cgroup": "0::/kubepods/pod1\n"}}, "Kubernetes", "device plugin"),
    ({"files": {"/proc/1/cgroup": "1:name=systemd:/docker/abc\n"}}, "Docker", "nvidia-container-toolkit"),
])
def test_containers_without_gpus_say_how_to_pass_them(marks, kind, mend):
    (result,) = check("container", cpu_machine(**marks))
    assert result.status == "info"
    assert f"in {kind} without GPU" in result.found
    assert mend in result.found


def test_container_with_half_of_the_device_files():
    machine = Machine()
    del machine.files["/dev/nvidia-uvm"]
    assert "modprobe" in only("container", machine).mend
    machine.files["/.dockerenv"] = ""
    result = only("container", machine)
    assert "without /dev/nvidia-uvm" in result.found
    assert "--gpus all" in result.mend


def test_device_files_without_rights_or_library():
    assert "may not open /dev/nvidiactl" in only("container", Machine(locked={"/dev/nvidiactl"})).found
    machine = Machine()
    machine.files = {path: "" for path in machine.files if "libcuda" not in path} | {"/.dockerenv": ""}
    assert "NVIDIA_DRIVER_CAPABILITIES" in only("container", machine).mend
    machine.env["LD_LIBRARY_PATH"] = "/opt/driver"
    machine.files["/opt/driver/libcuda.so.1"] = ""
    assert check("container", machine)[0].status == "ok"


def test_host_whose_docker_cannot_pass_gpus():
    machine = Machine(commands={"docker": "/usr/bin/docker"})
    assert "without the NVIDIA container toolkit" in only("container", machine, status="info").found
    machine.commands["nvidia-ctk"] = "/usr/bin/nvidia-ctk"
    assert all(result.status == "ok" for result in check("container", machine))


def test_compiler_parts():
    machine = Machine(commands={})
    del machine.files["/py/Python.h"], machine.files["/site/triton/backends/nvidia/bin/ptxas"]
    found = check("compiler", machine)
    assert [result.status for result in found] == ["fail"] * 3
    assert "python3.12-dev" in found[1].mend
    machine = Machine(commands={"/opt/cc": "/opt/cc"}, env={"CC": "/opt/cc", "TRITON_PTXAS_PATH": "/nowhere"})
    assert "no ptxas" in only("compiler", machine).found
    assert check("compiler", cpu_machine(commands={}))[0].status == "info"


# --- limits, disk, hub


@pytest.mark.parametrize(("limits", "status", "mend"), [
    ((-1, -1), "ok", ""), ((65536, 65536), "ok", ""), ((1024, 524288), "warn", "ulimit -n"),
    ((1024, 1024), "warn", "limits.conf")])
def test_open_files(limits, status, mend):
    machine = Machine(limits={"RLIMIT_NOFILE": limits, "RLIMIT_MEMLOCK": (-1, -1)})
    result = check("limits", machine)[0]
    assert result.status == status
    assert mend in result.mend


def test_open_files_in_a_container():
    machine = Machine(limits={"RLIMIT_NOFILE": (1024, 1024), "RLIMIT_MEMLOCK": (-1, -1)})
    machine.files["/.dockerenv"] = ""
    assert "--ulimit" in only("limits", machine, status="warn").mend


def test_shared_memory_matters_with_several_gpus():
    one = Machine(disks={"/dev/shm": 64 * 2**20})
    assert check("limits", one)[1].status == "info"
    two = pair_of((18, 18), {})
    two.disks = {"/dev/shm": 64 * 2**20}
    assert "remount" in only("limits", two, status="warn").mend
    two.files["/.dockerenv"] = ""
    assert "--shm-size" in only("limits", two, status="warn").mend


def test_locked_memory_is_told_when_rdma_could_need_it():
    two = pair_of((18, 18), {})
    two.limits["RLIMIT_MEMLOCK"] = (8 * 2**20, 8 * 2**20)
    assert "8 MiB; RDMA" in only("limits", two, status="info").found


def test_disk_room_and_rights():
    machine = Machine(env={"PELTON_CACHE": "/big", "HF_HOME": "/hf"}, disks={"/big": 3 * GIB}, unwritable={"/hf/hub"})
    little, locked = check("disk", machine)
    assert (little.name, little.status) == ("engine cache", "warn")
    assert "3.0 GiB free" in little.found
    assert locked.status == "fail"
    assert "HF_HUB_CACHE" in locked.mend


def test_hub():
    assert check("hub", Machine())[0].status == "ok"
    assert check("hub", Machine(hub="timed out"))[0].status == "warn"
    assert check("hub", Machine(hub="never asked", env={"HF_HUB_OFFLINE": "1"}))[0].status == "info"


# --- the real probe


def test_torch_process_that_crashes_does_not_take_doctor_along(monkeypatch):
    monkeypatch.setattr(probe, "_ASK_TORCH", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UnavailableError, match="killed by signal 11"):
        probe.Probe().torch()
    monkeypatch.setattr(probe, "_ASK_TORCH", "raise ImportError('libtorch_cpu.so: undefined symbol')")
    with pytest.raises(UnavailableError, match=r"importing it failed: ImportError: libtorch_cpu\.so"):
        probe.Probe().torch()


def test_torch_process_that_hangs(monkeypatch):
    monkeypatch.setattr(probe, "_ASK_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(probe, "TORCH_TIMEOUT_S", 0.1)
    with pytest.raises(UnavailableError, match="longer than"):
        probe.Probe().torch()


def test_torch_facts_are_read():
    line = json.dumps({"version": "2.13.0", "cuda_version": "13.0", "is_available": True, "architectures": ["sm_90"],
                       "capabilities": [[9, 0], [9, 0]], "peers": [[0, 1]]})
    torch = probe.parse_torch(line)
    assert torch.capabilities == ((9, 0), (9, 0))
    assert torch.peers == ((0, 1),)


def test_real_probe_answers(tmp_path):
    real = probe.Probe()
    assert real.python_version()[:2] >= (3, 11)
    assert real.version_of("no-such-distribution") is None
    assert real.requires("no-such-distribution") == []
    assert real.package_dir("no_such_package") is None
    assert real.read_text(str(tmp_path / "nothing")) == ""
    assert real.can_write(str(tmp_path / "a" / "b"))
    assert real.existing_parent(str(tmp_path / "a" / "b")) == str(tmp_path)
    assert real.disk(str(tmp_path / "a"))[1] > 0
    assert real.limit("RLIMIT_NOFILE")[0] != 0


def test_reach_takes_any_answer_and_reports_none():
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert probe.Probe().reach(url) >= 0
    thread.join()
    listener.close()
    with pytest.raises(UnavailableError):
        probe.Probe().reach(url)
    with pytest.raises(UnavailableError):
        probe.Probe().reach("not a url")


# --- NVML


class FakeNvml(SimpleNamespace):
    """Enough of pynvml for two GPUs without MIG."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_P2P_CAPS_INDEX_READ, NVML_P2P_STATUS_OK, NVML_NVLINK_MAX_LINKS = 1, (0,), 0, 3
    NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED = 1
    nvmlClocksEventReasonSwThermalSlowdown = 32

    def nvmlInit(self): pass
    def nvmlShutdown(self): pass
    def nvmlSystemGetCudaDriverVersion_v2(self): return 13020
    def nvmlSystemGetDriverVersion(self): return b"580.65.06"
    def nvmlDeviceGetCount(self): return 2
    def nvmlDeviceGetHandleByIndex(self, index): return index
    def nvmlDeviceGetName(self, gpu): return f"NVIDIA Test {gpu}"
    def nvmlDeviceGetMemoryInfo(self, gpu): return SimpleNamespace(total=10 * GIB, used=GIB)
    def nvmlDeviceGetClockInfo(self, gpu, kind): return 300
    def nvmlDeviceGetMaxClockInfo(self, gpu, kind): return 1980
    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu): return 32 * gpu
    def nvmlDeviceGetNvLinkState(self, gpu, link): return int(link < 2)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=2**22 + 5, usedGpuMemory=None)]

    def nvmlDeviceGetP2PStatus(self, one, other, what):
        assert what == 0
        return one

    def nvmlDeviceGetMigMode(self, gpu):
        raise self.NVMLError("Not Supported")


def test_nvml_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    driver = nvml.read_driver()
    assert (driver.version, driver.cuda_version, driver.major) == ("580.65.06", (13, 2), 580)
    assert [gpu.num_nvlinks for gpu in driver.gpus] == [2, 2]
    assert [gpu.slowdowns for gpu in driver.gpus] == [(), ("too hot",)]
    assert driver.gpus[0].processes[0].name == "outside this container"
    assert not driver.gpus[0].is_mig, "a question that is not supported has no answer"
    assert driver.peers == {(0, 1): "ok", (1, 0): "the chipset does not support it"}


def test_nvml_that_does_not_start(monkeypatch):
    broken = FakeNvml()

    def fail() -> None:
        raise broken.NVMLError("Driver/library version mismatch")

    broken.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    with pytest.raises(UnavailableError, match="version mismatch"):
        nvml.read_driver()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError, match="nvidia-ml-py is not installed"):
        nvml.read_driver()


# --- the command


def test_exit_code_and_json(capsys):
    assert run.run_doctor(run.DoctorOptions(json=True), Machine()) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert run.run_doctor(run.DoctorOptions(json=True), Machine(python=(3, 9, 0))) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["results"][0] == {"name": "python", "status": "fail", "found": "3.9.0; Pelton needs 3.11 or newer",
                                  "mend": "install Python 3.11 or 3.12 and make the virtual environment with it"}
    assert run.run_doctor(run.DoctorOptions(json=True), Machine(hub="down")) == 0, "a warning is no failure"


def test_table_shows_mends_and_counts():
    out = io.StringIO()
    run.print_table(run_checks(Machine(python=(3, 9, 0), hub="down")), Console(file=out, width=100))
    text = " ".join(out.getvalue().split())
    assert "→ install Python 3.11" in text
    assert "Not ready: 1 to mend, 1 to look at." in text


def test_doctor_does_not_import_torch():
    code = ("import sys\nfrom pelton.doctor.run import DoctorOptions, run_doctor\n"
            "from pelton.doctor import probe\nprobe._ASK_TORCH = 'raise ImportError'\n"
            "run_doctor(DoctorOptions())\nsys.exit(2 if 'torch' in sys.modules else 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"})
    assert done.returncode == 0, done.stderr
