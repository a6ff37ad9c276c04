"""What a GPU's generation can compute with: NVIDIA's compute capabilities.

Source: developer.nvidia.com/cuda-gpus, table of compute capabilities, as known on 2026-11-21; not read again by a
program. Hardware does not change after it is sold, so unlike the catalogue this table does not go out of date.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from flashkit.catalog import GPUS, GpuPool, GpuType


class Capability(NamedTuple):
    """A compute capability; they compare as versions do."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


_AMPERE_SERVER, _AMPERE, _ADA, _HOPPER = Capability(8, 0), Capability(8, 6), Capability(8, 9), Capability(9, 0)
_BLACKWELL_SERVER, _BLACKWELL = Capability(10, 0), Capability(12, 0)

CAPABILITIES: Final[dict[GpuType, Capability]] = {
    GpuType.NVIDIA_RTX_A4000: _AMPERE,
    GpuType.NVIDIA_RTX_A4500: _AMPERE,
    GpuType.NVIDIA_RTX_4000_ADA: _ADA,
    GpuType.NVIDIA_RTX_2000_ADA: _ADA,
    GpuType.NVIDIA_RTX_A5000: _AMPERE,
    GpuType.NVIDIA_L4: _ADA,
    GpuType.NVIDIA_RTX_3090: _AMPERE,
    GpuType.NVIDIA_RTX_4090: _ADA,
    GpuType.NVIDIA_RTX_5090: _BLACKWELL,
    GpuType.NVIDIA_A40: _AMPERE,
    GpuType.NVIDIA_RTX_A6000: _AMPERE,
    GpuType.NVIDIA_RTX_6000_ADA: _ADA,
    GpuType.NVIDIA_L40: _ADA,
    GpuType.NVIDIA_L40S: _ADA,
    GpuType.NVIDIA_A100_80GB_PCIe: _AMPERE_SERVER,
    GpuType.NVIDIA_A100_SXM4_80GB: _AMPERE_SERVER,
    GpuType.NVIDIA_H100_80GB_HBM3: _HOPPER,
    GpuType.NVIDIA_H100_PCIe: _HOPPER,
    GpuType.NVIDIA_H100_NVL: _HOPPER,
    GpuType.NVIDIA_RTX_PRO_6000_SERVER: _BLACKWELL,
    GpuType.NVIDIA_RTX_PRO_6000_WORKSTATION: _BLACKWELL,
    GpuType.NVIDIA_RTX_PRO_6000_MAX_Q: _BLACKWELL,
    GpuType.NVIDIA_H200: _HOPPER,
    GpuType.NVIDIA_B200: _BLACKWELL_SERVER,
}

NATIVE_FP8: Final = _ADA
"""From Ada on a GPU multiplies 8-bit floating point numbers itself; older ones unpack them to 16 bits first."""
NATIVE_FP4: Final = _BLACKWELL_SERVER
"""From Blackwell on a GPU multiplies 4-bit floating point numbers itself."""


def models_of(gpus: tuple[GpuType | GpuPool, ...]) -> tuple[GpuType, ...]:
    """Return the models that a preference list may be answered with, pools written out."""
    found = (
        [gpu] if isinstance(gpu, GpuType) else [model.type for model in GPUS.values() if model.pool is gpu]
        for gpu in gpus
    )
    return tuple(dict.fromkeys(model for models in found for model in models))
