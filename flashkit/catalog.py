"""Dated facts about the platform: GPUs, CPU flavours, data centres, limits and prices.

Nothing else in flashkit holds such a number. Each table says where it was read and when; the
platform's own catalogue (`GET /v2/catalog/gpus`) is newer than any of them. Names that people type
("A100", "rtx 4090", "us-ga-2") are resolved here, and a name that is not known fails with the
nearest ones.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from flashkit.errors import DefinitionError

READ_ON = "2026-11-21"
"""Day on which the tables of this module were last compared with their sources."""


class GpuPool(StrEnum):
    """Groups of GPUs of one class, as the platform schedules them (docs.runpod.io, GPU types)."""

    AMPERE_16 = "AMPERE_16"
    AMPERE_24 = "AMPERE_24"
    ADA_24 = "ADA_24"
    ADA_32_PRO = "ADA_32_PRO"
    AMPERE_48 = "AMPERE_48"
    ADA_48_PRO = "ADA_48_PRO"
    AMPERE_80 = "AMPERE_80"
    ADA_80_PRO = "ADA_80_PRO"
    BLACKWELL_96 = "BLACKWELL_96"
    HOPPER_141 = "HOPPER_141"
    BLACKWELL_180 = "BLACKWELL_180"


class GpuType(StrEnum):
    """GPU models by the device name that the platform uses."""

    NVIDIA_RTX_A4000 = "NVIDIA RTX A4000"
    NVIDIA_RTX_A4500 = "NVIDIA RTX A4500"
    NVIDIA_RTX_4000_ADA = "NVIDIA RTX 4000 Ada Generation"
    NVIDIA_RTX_2000_ADA = "NVIDIA RTX 2000 Ada Generation"
    NVIDIA_RTX_A5000 = "NVIDIA RTX A5000"
    NVIDIA_L4 = "NVIDIA L4"
    NVIDIA_RTX_3090 = "NVIDIA GeForce RTX 3090"
    NVIDIA_RTX_4090 = "NVIDIA GeForce RTX 4090"
    NVIDIA_RTX_5090 = "NVIDIA GeForce RTX 5090"
    NVIDIA_A40 = "NVIDIA A40"
    NVIDIA_RTX_A6000 = "NVIDIA RTX A6000"
    NVIDIA_RTX_6000_ADA = "NVIDIA RTX 6000 Ada Generation"
    NVIDIA_L40 = "NVIDIA L40"
    NVIDIA_L40S = "NVIDIA L40S"
    NVIDIA_A100_80GB_PCIe = "NVIDIA A100 80GB PCIe"
    NVIDIA_A100_SXM4_80GB = "NVIDIA A100-SXM4-80GB"
    NVIDIA_H100_80GB_HBM3 = "NVIDIA H100 80GB HBM3"
    NVIDIA_H100_PCIe = "NVIDIA H100 PCIe"
    NVIDIA_H100_NVL = "NVIDIA H100 NVL"
    NVIDIA_RTX_PRO_6000_SERVER = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    NVIDIA_RTX_PRO_6000_WORKSTATION = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    NVIDIA_RTX_PRO_6000_MAX_Q = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
    NVIDIA_H200 = "NVIDIA H200"
    NVIDIA_B200 = "NVIDIA B200"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU model: its pool, memory in GB, and flex price in US dollars per second."""

    type: GpuType
    pool: GpuPool
    vram_gb: int
    usd_per_second: float | None
    """Flex worker price; None where no source gives one. Docs table of 2026-06-08, dated, may have moved."""


GPUS: dict[GpuType, Gpu] = {
    gpu.type: gpu
    for gpu in (
        # Pools: vendor SDK source and docs; NVL, PCIe, L40 and L40S as the docs table assigns them.
        Gpu(GpuType.NVIDIA_RTX_A4000, GpuPool.AMPERE_16, 16, 0.00016),
        Gpu(GpuType.NVIDIA_RTX_A4500, GpuPool.AMPERE_16, 20, 0.00016),
        Gpu(GpuType.NVIDIA_RTX_4000_ADA, GpuPool.AMPERE_16, 20, 0.00016),
        Gpu(GpuType.NVIDIA_RTX_2000_ADA, GpuPool.AMPERE_16, 16, None),
        Gpu(GpuType.NVIDIA_RTX_A5000, GpuPool.AMPERE_24, 24, 0.00019),
        Gpu(GpuType.NVIDIA_L4, GpuPool.AMPERE_24, 24, 0.00019),
        Gpu(GpuType.NVIDIA_RTX_3090, GpuPool.AMPERE_24, 24, 0.00019),
        Gpu(GpuType.NVIDIA_RTX_4090, GpuPool.ADA_24, 24, 0.00031),
        Gpu(GpuType.NVIDIA_RTX_5090, GpuPool.ADA_32_PRO, 32, None),
        Gpu(GpuType.NVIDIA_A40, GpuPool.AMPERE_48, 48, 0.00034),
        Gpu(GpuType.NVIDIA_RTX_A6000, GpuPool.AMPERE_48, 48, 0.00034),
        Gpu(GpuType.NVIDIA_RTX_6000_ADA, GpuPool.ADA_48_PRO, 48, 0.00053),
        Gpu(GpuType.NVIDIA_L40, GpuPool.ADA_48_PRO, 48, 0.00053),
        Gpu(GpuType.NVIDIA_L40S, GpuPool.ADA_48_PRO, 48, 0.00053),
        Gpu(GpuType.NVIDIA_A100_80GB_PCIe, GpuPool.AMPERE_80, 80, 0.00076),
        Gpu(GpuType.NVIDIA_A100_SXM4_80GB, GpuPool.AMPERE_80, 80, 0.00076),
        Gpu(GpuType.NVIDIA_H100_80GB_HBM3, GpuPool.ADA_80_PRO, 80, 0.00116),
        Gpu(GpuType.NVIDIA_H100_PCIe, GpuPool.ADA_80_PRO, 80, 0.00116),
        Gpu(GpuType.NVIDIA_H100_NVL, GpuPool.ADA_80_PRO, 94, 0.00116),
        Gpu(GpuType.NVIDIA_RTX_PRO_6000_SERVER, GpuPool.BLACKWELL_96, 96, 0.00111),
        Gpu(GpuType.NVIDIA_RTX_PRO_6000_WORKSTATION, GpuPool.BLACKWELL_96, 96, 0.00111),
        Gpu(GpuType.NVIDIA_RTX_PRO_6000_MAX_Q, GpuPool.BLACKWELL_96, 96, 0.00111),
        Gpu(GpuType.NVIDIA_H200, GpuPool.HOPPER_141, 141, 0.00155),
        Gpu(GpuType.NVIDIA_B200, GpuPool.BLACKWELL_180, 180, 0.00240),
    )
}


ACTIVE_USD_PER_SECOND: dict[GpuPool, float] = {
    GpuPool.AMPERE_16: 0.00011,
    GpuPool.AMPERE_24: 0.00013,
    GpuPool.ADA_24: 0.00021,
    GpuPool.AMPERE_48: 0.00024,
    GpuPool.ADA_48_PRO: 0.00037,
    GpuPool.AMPERE_80: 0.00060,
    GpuPool.ADA_80_PRO: 0.00093,
    GpuPool.HOPPER_141: 0.00124,
    GpuPool.BLACKWELL_180: 0.00190,
}
"""Price of a worker that is always there (`workers.min`), by pool: earlier, undated copies of the pricing page of
docs.runpod.io; the page of 2026-07 names none. No source gives a price of CPU instances."""


POD_USD_PER_HOUR: dict[GpuType, float] = {
    GpuType.NVIDIA_RTX_3090: 0.22,
    GpuType.NVIDIA_RTX_4090: 0.34,
    GpuType.NVIDIA_L4: 0.44,
    GpuType.NVIDIA_L40: 0.69,
    GpuType.NVIDIA_RTX_5090: 0.69,
    GpuType.NVIDIA_L40S: 0.79,
    GpuType.NVIDIA_A100_80GB_PCIe: 1.19,
    GpuType.NVIDIA_A100_SXM4_80GB: 1.39,
    GpuType.NVIDIA_H100_PCIe: 1.99,
    GpuType.NVIDIA_H100_80GB_HBM3: 2.69,
    GpuType.NVIDIA_H200: 3.59,
    GpuType.NVIDIA_B200: 5.98,
}
"""Lowest price of one GPU in a Pod, which is there until it is stopped: a third party's table of 2026-03-10
(deploybase.ai/articles/runpod-gpu-pricing); the platform's own catalogue has `price.secure` and `price.community`."""


def usd_per_second(gpu: GpuType | GpuPool, *, is_active: bool = False) -> float | None:
    """Return what one GPU costs, active (always there) or flex; None where no source gives a price.

    A pool costs what the first of its models costs that has a price.
    """
    models = [GPUS[gpu]] if isinstance(gpu, GpuType) else [model for model in GPUS.values() if model.pool is gpu]
    flex = next((model.usd_per_second for model in models if model.usd_per_second is not None), None)
    return ACTIVE_USD_PER_SECOND.get(models[0].pool, flex) if is_active and flex is not None else flex


class DataCenter(StrEnum):
    """Data centres with serverless capacity: docs page and vendor SDK lists together."""

    US_CA_2 = "US-CA-2"
    US_GA_2 = "US-GA-2"
    US_IL_1 = "US-IL-1"
    US_KS_2 = "US-KS-2"
    US_MD_1 = "US-MD-1"
    US_MO_1 = "US-MO-1"
    US_MO_2 = "US-MO-2"
    US_NC_1 = "US-NC-1"
    US_NC_2 = "US-NC-2"
    US_NE_1 = "US-NE-1"
    US_WA_1 = "US-WA-1"
    EU_CZ_1 = "EU-CZ-1"
    EU_RO_1 = "EU-RO-1"
    EUR_IS_1 = "EUR-IS-1"
    EUR_NO_1 = "EUR-NO-1"


CUDA_VERSIONS = ("11.8", "12.0", "12.1", "12.2", "12.3", "12.4", "12.5", "12.6", "12.7", "12.8", "12.9", "13.0")
"""CUDA floors the platform accepts (vendor SDK 1.21 source)."""

_GB_PER_VCPU = {"cpu3g": 4, "cpu3c": 2, "cpu5g": 4, "cpu5c": 2}
CPU_FLAVORS: tuple[str, ...] = tuple(
    f"{family}-{vcpus}-{vcpus * gb}" for family, gb in _GB_PER_VCPU.items() for vcpus in (1, 2, 4, 8)
)
"""CPU instances as `<family>-<vCPUs>-<GB>` (vendor SDK 1.21 source; cpu5g by the REST v2 schema)."""


@dataclass(frozen=True, slots=True)
class Range:
    """An inclusive range that the platform enforces."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


EXECUTION_TIMEOUT_MS = Range(5_000, 604_800_000)
"""5 s to 7 days (docs.runpod.io, operation reference, `policy.executionTimeout`)."""
LOAD_BALANCED_TIMEOUT_MS = 330_000
"""5.5 min for one request to a load-balanced endpoint (docs.runpod.io, load balancing overview)."""
LOAD_BALANCED_CONCURRENCY = 32
"""Chosen: requests that one worker handles at the same time unless the endpoint says otherwise."""
IDLE_TIMEOUT_SECONDS = Range(1, 3_600)
"""REST v1 and v2 endpoint schema."""
VOLUME_SIZE_GB = Range(10, 4_096)
"""REST v2 network volume schema."""
VOLUME_MB_PER_SECOND = Range(200, 400)
"""How fast a standard network volume is read (docs.runpod.io/storage/network-volumes, 2026-11-21)."""
FAST_VOLUME_FACTOR = 3
"""A HIGH_PERFORMANCE volume has up to this times the throughput (the same page)."""
VOLUME_USD_PER_GB_MONTH = ((1_000, 0.07), (float("inf"), 0.05))
"""Price of a gigabyte on a network volume: up to 1 TB, and of those above (the same page)."""
CONTAINER_DISK_USD_PER_GB_MONTH = 0.10
"""About; billed in steps of five minutes while a worker is there (docs.runpod.io/serverless/pricing, 2026-11-21)."""
CONTAINER_DISK_GB = {"cpu": 10, "gpu": 30}
"""Disk of a worker, its image included, where nothing is asked for: the vendor SDK's defaults
(docs.runpod.io/sdk/configuration/parameters and /cpu-types, 2026-10-15)."""
CPU_DISK_GB_PER_VCPU = {"cpu3c": 10, "cpu3g": 10, "cpu5c": 15}
"""Largest disk of a CPU worker for each vCPU (vendor's flash SDK, resources/cpu.py, read 2026-11-27), without cpu5g."""
IMAGE_PULL_MB_PER_SECOND = 59
"""An image of 27 GB was ready after 456 s on a new host: one measurement of a third party
(dev.to/sergeyshmakov/how-runpod-flashboot-actually-works-4-request-test-49of), the start of the engine included."""
LOCAL_DISK_MB_PER_SECOND = 1_000
"""Chosen: how fast a host's own disk is read. No source gives it; measure yours with `flashkit weights verify`."""
S3_PART_BYTES = 500_000_000
"""Longest part of an upload to Runpod's S3 (docs.runpod.io/storage/s3-api, 2026-11-21)."""
S3_OBJECT_BYTES = 4_000_000_000_000
"""Largest file in Runpod's S3 (the same page)."""
ENGINE_CONCURRENCY = 64
"""Chosen: most jobs that a worker with an engine takes at a time; the engine takes no more than fit its memory."""


def resolve_gpus(names: Iterable[str]) -> tuple[GpuType | GpuPool, ...]:
    """Return GPU types and pools for enum members, device names or fragments such as "A100".

    A fragment that several models of one pool share ("H100") stands for all of them, in catalogue
    order. The order of `names` is kept: it is the order of preference.

    Raises:
        DefinitionError: A name is unknown, or fits GPUs of different pools.
    """
    found: dict[GpuType | GpuPool, None] = {}
    for name in names:
        found.update(dict.fromkeys(_resolve_gpu(name)))
    return tuple(found)


def _resolve_gpu(name: str) -> tuple[GpuType | GpuPool, ...]:
    if not isinstance(name, str):
        raise DefinitionError(f"gpu={name!r} is not a GPU name", hint="give a GpuType, a GpuPool or a name like 'A100'")
    if name.upper() in GpuPool.__members__:
        return (GpuPool[name.upper()],)
    if name.upper() == "ANY":
        raise DefinitionError(
            "gpu='any' lets the platform choose, so cost and memory are not known",
            hint="pin one or more GPUs, in order of preference",
        )
    for gpu in GpuType:
        if name.casefold() in (gpu.value.casefold(), gpu.name.casefold()):
            return (gpu,)
    matches = _gpus_with_words(_words(name)) or _gpus_with_words(_split_into_known_words(name))
    pools = {GPUS[gpu].pool for gpu in matches}
    if len(pools) > 1:
        listing = ", ".join(gpu.value for gpu in matches)
        raise DefinitionError(f"gpu={name!r} fits several GPUs: {listing}", hint="write the one you mean")
    if not matches:
        _fail_unknown("gpu", name, [*GPU_NAMES, *GpuPool])
    return matches


def _gpus_with_words(words: Sequence[str]) -> tuple[GpuType, ...]:
    return tuple(gpu for gpu in GpuType if words and set(words) <= set(_words(gpu.value)))


def _split_into_known_words(name: str) -> list[str]:
    """Return "rtx", "4090" for "RTX4090" or "rtx40-90"; empty where something is left over."""
    known = sorted({word for gpu in GpuType for word in _words(gpu.value)}, key=len, reverse=True)
    compact = "".join(_words(name))
    words = re.findall("|".join(known), compact)
    return words if "".join(words) == compact else []


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())


def _short_gpu_name(gpu: GpuType) -> str:
    return re.sub(r"NVIDIA |GeForce |Blackwell | Generation| Edition", "", gpu.value)


_FAMILIES = ("A100", "H100", "RTX PRO 6000")
GPU_NAMES: tuple[str, ...] = (*_FAMILIES, *map(_short_gpu_name, GpuType))
"""GPUs as people call them: three names that stand for several models of one pool, then every model."""


def resolve_datacenter(name: str) -> DataCenter:
    """Return the data centre for an enum member or a name in any case, with `-` or `_`.

    Raises:
        DefinitionError: The name is unknown.
    """
    key = str(name).upper().replace("-", "_")
    if key not in DataCenter.__members__:
        _fail_unknown("datacenter", name, DataCenter)
    return DataCenter[key]


def s3_endpoint(region: str) -> str | None:
    """Return the address of Runpod's S3 for the volumes of a data centre, None for a region that is none of Runpod's.

    The region of Runpod's S3 is the data centre's name; all data centres of the list have one
    (docs.runpod.io/storage/s3-api, 2026-11-21).
    """
    key = region.upper()
    return f"https://s3api-{key.lower()}.runpod.io/" if key in set(DataCenter) else None


def s3_region(endpoint: str) -> str | None:
    """Return the region that belongs to an address of Runpod's S3, None for another one."""
    found = re.search(r"//s3api-([a-z0-9-]+)\.runpod\.io", endpoint)
    return found[1].upper() if found else None


def volume_usd_per_month(size_gb: float) -> float:
    """Return what a network volume of this size costs a month."""
    cost, below = 0.0, 0.0
    for limit, price in VOLUME_USD_PER_GB_MONTH:
        cost += max(0.0, min(size_gb, limit) - below) * price
        below = limit
    return cost


def largest_cpu_disk_gb(cpu: str) -> int | None:
    """Return the largest disk of a CPU instance in GB, None where no source says."""
    family, vcpus, _ = cpu.split("-")
    each = CPU_DISK_GB_PER_VCPU.get(family)
    return None if each is None else each * int(vcpus)


def resolve_cpu(name: str) -> str:
    """Return the CPU instance id, for example `cpu5c-4-8` (4 vCPUs, 8 GB).

    Raises:
        DefinitionError: No such instance.
    """
    key = str(name).casefold()
    if key not in CPU_FLAVORS:
        _fail_unknown("cpu", name, CPU_FLAVORS)
    return key


def resolve_cuda(version: str) -> str:
    """Return the CUDA version if the platform accepts it as a floor.

    Raises:
        DefinitionError: It does not.
    """
    if str(version) not in CUDA_VERSIONS:
        _fail_unknown("min_cuda_version", version, CUDA_VERSIONS)
    return str(version)


def nearest_names(name: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the known names that look most like `name`, best first; empty when none comes close."""
    by_key = {"".join(_words(candidate)): candidate for candidate in known}
    matches = difflib.get_close_matches("".join(_words(name)), by_key, n=limit, cutoff=0.5)
    return [by_key[match] for match in matches]


def _fail_unknown(option: str, name: object, known: Iterable[str]) -> NoReturn:
    names = [str(item) for item in known]
    near = nearest_names(str(name), names)
    raise DefinitionError(
        f"{option}={str(name)!r} is not known" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ""),
        hint=f"valid names: {', '.join(names)}",
        details={"option": option, "value": str(name), "nearest": near, "valid": names},
    )
