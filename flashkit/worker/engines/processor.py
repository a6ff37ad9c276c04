"""What this machine's processor can multiply by itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

_CPU_INFO: Final = Path("/proc/cpuinfo")
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
