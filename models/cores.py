"""How many cores the process may use: not how many the machine has."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores(cgroup: Path = _CGROUP, topology: str = _TOPOLOGY) -> int:
    """Physical cores that the scheduler and the container's quota let this process use, at least 1.

    Two threads of one core share its units for products, so they count once.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    cores = {_siblings(topology, cpu) for cpu in os.sched_getaffinity(0)}
    quota = _quota(cgroup)
    return max(1, len(cores) if quota is None else min(len(cores), round(quota)))


def _siblings(topology: str, cpu: int) -> str:
    try:
        return Path(topology.format(cpu)).read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the container may use; None: all. Source: Linux, admin-guide/cgroup-v2 and -v1."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() else None
