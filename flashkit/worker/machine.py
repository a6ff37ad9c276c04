"""What this machine, or the container on it that we are in, has for a worker."""

from __future__ import annotations

import contextlib
import math
import os
from functools import cache
from pathlib import Path
from typing import Final

_CPU_INFO: Final = Path("/proc/cpuinfo")
_CONTAINER_MEMORY: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where a container's limit and its use are, in both versions of control groups."""
_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Linux's names of the x86 instructions that multiply bfloat16; without them it is computed by way of float32."""


@cache
def has_bfloat16(cpu_info: Path = _CPU_INFO) -> bool | None:
    """Say whether the processor has instructions for bfloat16; None where Linux does not tell, as on other systems."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else not _BFLOAT16.isdisjoint(flags)


def free_memory() -> int:
    """Return the bytes that programs can still have: of the machine, or of the container where that is less."""
    free = [_available_memory()]
    for limit, used in _CONTAINER_MEMORY:
        with contextlib.suppress(OSError, ValueError):
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(free))


def _available_memory() -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cpus() -> int:
    """Return how many processors this process may use at the same time, as far as the system tells.

    Libraries do not look at a container's limit on processor time: a thread for each of the host's cores would wait
    for the others most of the time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, cpu_quota(Path("/sys/fs/cgroup")) or cores))


def cpu_quota(cgroup: Path) -> int | None:
    """Return a control group's limit in processors, None where it has none."""
    try:
        if (file := cgroup / "cpu.max").is_file():
            quota, period = file.read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None
