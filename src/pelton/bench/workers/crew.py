"""How many client processes a run uses."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence

from pelton.bench.calibrate import is_within_target
from pelton.bench.client import Client
from pelton.bench.results import ClientError, ClientLoad
from pelton.bench.workers.pool import WorkerPool

MAX_CPU_SHARE = 0.7  # of a core; a busier client stamps late


class Crew:
    """A fixed number of processes, or one and more when the work of one is too much."""

    def __init__(self, asked: str, client: Client, errors: Sequence[ClientError] = ()) -> None:
        """`asked` is a number or auto, `errors` those of a single process at the loads to come."""
        self.pool = WorkerPool(client)
        self._most = most_workers(client.address.host) if asked == "auto" else int(asked)
        is_slow = not all(map(is_within_target, errors))
        self.num_workers = min(2 if is_slow else 1, self._most) if asked == "auto" else self._most

    def grow_for(self, client: ClientLoad) -> bool:
        """Doubles the processes when one was busier than it may be; True when the trial is to be measured again."""
        used_fewer = client.num_workers < self.num_workers  # than it might: the load has no more parts
        if max(client.cpu_share) <= MAX_CPU_SHARE or self.num_workers >= self._most or used_fewer:
            return False
        self.num_workers = min(2 * self.num_workers, self._most)
        return True


def most_workers(host: str) -> int:
    """One per core; half of the cores where the server may need the others."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    return max(num_cpus // 2, 1) if is_local else num_cpus
