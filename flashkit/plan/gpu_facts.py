"""What a GPU has: the memory that programs see, and how fast it computes and reads.

Memory: `total_memory` as PyTorch and vLLM print it in public start-up logs and out-of-memory messages (github.com,
read 2026-11-27). It is less than the name says where a card checks its memory (ECC on GDDR6: L4, A40, L40, L40S) and
more in decimal gigabytes, as "80 GB" is 79.2 GiB. Models without such a log count with 98 % of their name.

Speed: NVIDIA's data sheets as known on 2026-11-21, not read again by a program: 16-bit tensor operations without
sparsity, and the bandwidth of the memory. They rank GPUs; a real engine reaches a part of them (`COMPUTE_SHARE`,
`BANDWIDTH_SHARE`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from flashkit.catalog import GPUS, GpuType

GIB: Final = 1 << 30
COMPUTE_SHARE: Final = 0.5
"""Chosen: what a prefill reaches of the data sheet's operations."""
BANDWIDTH_SHARE: Final = 0.7
"""Chosen: what decoding reaches of the data sheet's bandwidth."""
SPLIT_SHARE: Final = 0.85
"""Chosen: what is left of the speed each time that the GPUs which share a model are doubled: they wait for each other,
most of all where no NVLink joins them."""
STEP_SECONDS: Final = 0.004
"""Chosen: no step of an engine takes less, however small the model: launching kernels and sampling cost that much."""
_SHARE_OF_NAME: Final = 0.98
"""For models without a log; of those with one it is the lowest without ECC (RTX 5090, 31.36 of 32)."""

_SEEN_GIB: Final[dict[GpuType, float]] = {
    GpuType.NVIDIA_L4: 22.03,
    GpuType.NVIDIA_RTX_3090: 23.58,
    GpuType.NVIDIA_RTX_4090: 23.58,
    GpuType.NVIDIA_RTX_5090: 31.36,
    GpuType.NVIDIA_A40: 44.35,
    GpuType.NVIDIA_L40: 44.35,
    GpuType.NVIDIA_L40S: 44.39,
    GpuType.NVIDIA_RTX_A6000: 47.40,
    GpuType.NVIDIA_RTX_6000_ADA: 47.40,
    GpuType.NVIDIA_A100_80GB_PCIe: 79.14,
    GpuType.NVIDIA_A100_SXM4_80GB: 79.25,
    GpuType.NVIDIA_H100_80GB_HBM3: 79.19,
    GpuType.NVIDIA_H100_PCIe: 79.19,
    GpuType.NVIDIA_RTX_PRO_6000_SERVER: 94.97,
    GpuType.NVIDIA_RTX_PRO_6000_WORKSTATION: 94.97,
    GpuType.NVIDIA_RTX_PRO_6000_MAX_Q: 94.97,
    GpuType.NVIDIA_H200: 139.81,
    GpuType.NVIDIA_B200: 178.35,
}


@dataclass(frozen=True, slots=True)
class Speed:
    """What the data sheet promises."""

    teraflops: float
    gb_per_second: float


SPEEDS: Final[dict[GpuType, Speed]] = {
    GpuType.NVIDIA_RTX_A4000: Speed(77, 448),
    GpuType.NVIDIA_RTX_A4500: Speed(95, 640),
    GpuType.NVIDIA_RTX_4000_ADA: Speed(107, 360),
    GpuType.NVIDIA_RTX_2000_ADA: Speed(48, 224),
    GpuType.NVIDIA_RTX_A5000: Speed(111, 768),
    GpuType.NVIDIA_L4: Speed(121, 300),
    GpuType.NVIDIA_RTX_3090: Speed(71, 936),
    GpuType.NVIDIA_RTX_4090: Speed(165, 1008),
    GpuType.NVIDIA_RTX_5090: Speed(210, 1792),
    GpuType.NVIDIA_A40: Speed(150, 696),
    GpuType.NVIDIA_RTX_A6000: Speed(155, 768),
    GpuType.NVIDIA_RTX_6000_ADA: Speed(364, 960),
    GpuType.NVIDIA_L40: Speed(181, 864),
    GpuType.NVIDIA_L40S: Speed(362, 864),
    GpuType.NVIDIA_A100_80GB_PCIe: Speed(312, 1935),
    GpuType.NVIDIA_A100_SXM4_80GB: Speed(312, 2039),
    GpuType.NVIDIA_H100_80GB_HBM3: Speed(989, 3350),
    GpuType.NVIDIA_H100_PCIe: Speed(756, 2000),
    GpuType.NVIDIA_H100_NVL: Speed(835, 3938),
    GpuType.NVIDIA_RTX_PRO_6000_SERVER: Speed(503, 1597),
    GpuType.NVIDIA_RTX_PRO_6000_WORKSTATION: Speed(503, 1792),
    GpuType.NVIDIA_RTX_PRO_6000_MAX_Q: Speed(438, 1792),
    GpuType.NVIDIA_H200: Speed(989, 4800),
    GpuType.NVIDIA_B200: Speed(2250, 8000),
}


def split_share(gpu_count: int) -> float:
    """Return what is left of the speed of so many GPUs that share a model."""
    return float(SPLIT_SHARE ** math.log2(gpu_count))


def seen_gib(gpu: GpuType) -> float:
    """Return the memory in GiB that a program sees."""
    return _SEEN_GIB.get(gpu, GPUS[gpu].vram_gb * _SHARE_OF_NAME)
