"""How several GPUs reach each other: NVLink and peer access."""

from __future__ import annotations

from pelton.doctor.facts import Torch, UnavailableError
from pelton.doctor.machine import driver_or_none
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

_MEND = ("turn off IOMMU or ACS in the firmware (in a virtual machine: ask its host), check `nvidia-smi topo -p2p r`; "
         "until then collectives go through main memory")


def check(probe: Probe) -> list[Result]:
    driver = driver_or_none(probe)
    if driver is None or len(driver.gpus) < 2:
        return []
    links = {gpu.index: gpu.num_nvlinks for gpu in driver.gpus}
    if all(links.values()):
        results = [Result("nvlink", "ok", f"{min(links.values())} active links on each GPU")]
    elif any(links.values()):
        without = ", ".join(str(index) for index, count in links.items() if not count)
        results = [Result("nvlink", "warn", f"no active link on GPU {without}",
                          "reseat the bridge or check `nvidia-smi nvlink -s`; prefer the GPUs that have links")]
    else:
        results = [Result("nvlink", "info", "none: the GPUs talk over PCIe, so prefer --tp-size 1 where a model fits")]
    return [*results, _peer_access(driver.peers, _torch(probe))]


def _peer_access(peers: dict[tuple[int, int], str], torch: Torch | None) -> Result:
    faults = {pair: reason for pair, reason in peers.items() if reason != "ok"}
    if torch and torch.is_available and not faults:
        allowed = set(torch.peers)
        count = len(torch.capabilities)
        faults = {(i, j): "CUDA refuses it" for i in range(count) for j in range(count)
                  if i != j and (i, j) not in allowed}
    if faults:
        reasons = ", ".join(sorted(set(faults.values())))
        (first, second), *more = sorted(faults)
        others = f" and {len(more)} other pairs" if more else ""
        return Result("peers", "warn", f"no peer access from GPU {first} to {second}{others}: {reasons}", _MEND)
    return Result("peers", "ok", "every GPU reads every other's memory")


def _torch(probe: Probe) -> Torch | None:
    try:
        return probe.torch()
    except UnavailableError:
        return None
