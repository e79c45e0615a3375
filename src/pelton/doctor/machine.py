"""What several checks ask: is there a GPU, and is this a container?"""

from __future__ import annotations

from pelton.doctor.facts import Driver, UnavailableError
from pelton.doctor.probe import Probe

_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"


def driver_or_none(probe: Probe) -> Driver | None:
    try:
        return probe.driver()
    except UnavailableError:
        return None


def num_gpus(probe: Probe) -> int:
    """GPUs the driver shows."""
    driver = driver_or_none(probe)
    return len(driver.gpus) if driver else 0


def hides_all_gpus(probe: Probe) -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves programs no GPU."""
    visible = probe.environ("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1")


def num_pci_gpus(probe: Probe) -> int:
    """NVIDIA display controllers on the PCI bus, whether or not a driver runs them."""
    return sum(1 for folder in probe.glob("/sys/bus/pci/devices/*")
               if probe.read_text(f"{folder}/vendor").strip() == _NVIDIA_VENDOR
               and probe.read_text(f"{folder}/class").startswith(_DISPLAY_CLASS))


def device_files(probe: Probe) -> list[str]:
    """/dev/nvidia0 and so on."""
    return probe.glob("/dev/nvidia[0-9]*")


def container(probe: Probe) -> str | None:
    """What kind of container this runs in, None outside of one."""
    if probe.environ("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    if probe.exists("/.dockerenv"):
        return "Docker"
    if probe.exists("/run/.containerenv"):
        return "Podman"
    group = probe.read_text("/proc/1/cgroup")
    for word, kind in (("kubepods", "Kubernetes"), ("docker", "Docker"), ("libpod", "Podman"),
                       ("containerd", "containerd"), ("lxc", "LXC")):
        if word in group:
            return kind
    return None


def passthrough_mend(kind: str | None) -> str:
    """How to hand a host's GPUs to a container of this kind."""
    toolkit = "install nvidia-container-toolkit on the host"
    if kind == "Kubernetes":
        return "run NVIDIA's device plugin on the node and ask for `nvidia.com/gpu: 1` in the pod's limits"
    if kind == "Podman":
        return f"{toolkit}, run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, start with " \
               "`--device nvidia.com/gpu=all`"
    return f"{toolkit}, run `nvidia-ctk runtime configure --runtime=docker` and restart Docker there, start the " \
           "container with `--gpus all`"
