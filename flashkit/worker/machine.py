"""What this machine, or the container on it that we are in, has for a worker."""

from __future__ import annotations

import contextlib
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
