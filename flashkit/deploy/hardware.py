"""What an app asks of hardware, in the words of REST v2: pools and the types in them that are not wanted.

A GPU is chosen by its pool; one type of it is the pool without the others. The order of pools is kept, although the
vendor does not say that it is one of preference in REST v2 (GraphQL's `gpuIds` is said to be); an order within a pool
cannot be said in either. CPUs of one vCPU exist in GraphQL alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flashkit.catalog import GPUS, GpuPool, GpuType

Pools = Mapping[str, Sequence[str]]
"""GPU types by pool."""


def known_pools() -> dict[str, list[str]]:
    """Return the pools as flashkit's own catalogue has them."""
    pools: dict[str, list[str]] = {}
    for gpu in GPUS.values():
        pools.setdefault(gpu.pool.value, []).append(gpu.type.value)
    return pools


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """GPUs as REST v2 takes them."""

    pools: tuple[str, ...]
    excluded: tuple[str, ...]
    accepted: tuple[str, ...]
    """The types that workers may get."""


def choose_gpus(wanted: Iterable[GpuType | GpuPool], pools: Pools) -> GpuChoice:
    """Return pools in order of preference, and the types in them that nobody asked for.

    Args:
        wanted: Types and pools, preferred ones first.
        pools: What the platform has; it may have types that flashkit does not know.
    """
    chosen: dict[str, set[str] | None] = {}
    for gpu in wanted:
        if isinstance(gpu, GpuPool):
            chosen[gpu.value] = None  # the whole pool
            continue
        pool = pool_of(gpu.value, pools)
        types = chosen.setdefault(pool, set())
        if types is not None:
            types.add(gpu.value)
    excluded: list[str] = []
    accepted: list[str] = []
    for pool, types in chosen.items():
        for name in pools.get(pool, known_pools().get(pool, ())):
            (accepted if types is None or name in types else excluded).append(name)
    return GpuChoice(tuple(chosen), tuple(sorted(excluded)), tuple(accepted))


def pool_of(gpu: str, pools: Pools) -> str:
    """Return the pool that a type is in, as the platform says, or else as flashkit knows."""
    found = next((pool for pool, types in pools.items() if gpu in types), None)
    return found or GPUS[GpuType(gpu)].pool.value


@dataclass(frozen=True, slots=True)
class CpuChoice:
    """A CPU instance, taken apart."""

    flavor: str
    vcpus: int

    @classmethod
    def of(cls, instance: str) -> CpuChoice:
        """Read an instance such as `cpu5c-4-8`."""
        flavor, vcpus, _ = instance.split("-")
        return cls(flavor, int(vcpus))

    @property
    def is_in_rest(self) -> bool:
        """False for one vCPU, which REST v2 does not know."""
        return self.vcpus > 1
