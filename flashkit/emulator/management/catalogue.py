"""The catalogue of REST v2 as far as `flashkit.catalog` knows it: GPUs, CPU flavours, data centres, prices.

Prices that no source gives are left out where the schema allows it, and 0 where it does not. Stock is made up:
everything is offered everywhere, except CPU flavours, whose data centres the vendor's SDK 2.0.0rc2 lists (read
2026-11-21). `stock` changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from flashkit.catalog import CPU_FLAVORS, GPUS, DataCenter, GpuPool
from flashkit.emulator.management.problems import bad_request, not_found

LEVELS: Final = ("NONE", "LOW", "MEDIUM", "HIGH")
Stock = Mapping[tuple[str, str], str]
"""Levels by data centre and GPU or CPU flavour."""
SECONDS_PER_HOUR: Final = 3_600
_PODS_ONLY: Final = {"secure": 0.0, "community": 0.0}
"""Prices of Pods, which flashkit has no use for; the schema asks for them."""
_MOST_GPUS: Final = {"secure": 8, "community": 8}
"""Chosen: no source says how many GPUs a machine has."""
_CPU_GENERATIONS: Final = {"3": "Gen 3", "5": "Gen 5"}
_CPU_KINDS: Final = {"c": "Compute-Optimized", "g": "General Purpose"}
_CPU3_DATACENTERS: Final = frozenset(
    {
        *(DataCenter.EU_CZ_1, DataCenter.EU_RO_1, DataCenter.US_CA_2, DataCenter.US_IL_1, DataCenter.US_KS_2),
        *(DataCenter.US_MO_1, DataCenter.US_MO_2, DataCenter.US_NC_2, DataCenter.US_NE_1, DataCenter.US_WA_1),
    }
)
_CPU5_DATACENTERS: Final = frozenset({DataCenter.EU_RO_1})


class Catalogue:
    """What can be had, and what it costs.

    Args:
        stock: Levels that differ from what is made up.
    """

    def __init__(self, stock: Stock | None = None) -> None:
        self._stock = dict(stock or {})

    # ------------------------------------------------------------------ what there is

    def types_of(self, pool: str) -> tuple[str, ...]:
        """Return the GPUs of a pool; none where there is no such pool."""
        return tuple(gpu.type.value for gpu in GPUS.values() if gpu.pool.value == pool)

    def has_datacenter(self, name: str) -> bool:
        """True when there is a data centre of this name."""
        return name in set(DataCenter)

    def vcpu_counts(self, flavor: str) -> tuple[int, ...]:
        """Return the sizes of a CPU flavour; none where there is no such flavour."""
        parts = (name.split("-") for name in CPU_FLAVORS)
        return tuple(int(vcpus) for family, vcpus, _ in parts if family == flavor)

    def gb_per_vcpu(self, flavor: str) -> int:
        """Return the memory that comes with a vCPU of this flavour."""
        family, vcpus, memory = next(name for name in CPU_FLAVORS if name.startswith(f"{flavor}-")).split("-")
        del family
        return int(memory) // int(vcpus)

    def level(self, datacenter: str, resource: str) -> str:
        """Return how much of a GPU or CPU flavour a data centre has."""
        return self._stock.get((datacenter, resource), _usual_level(datacenter, resource))

    # ------------------------------------------------------------------ as the API shows it

    def gpus(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return all GPU types."""
        shows_stock = _wants_stock(query, ("POD", "CLUSTER", "SERVERLESS"))
        return [self._gpu(gpu.type.value, shows_stock=shows_stock) for gpu in GPUS.values()]

    def gpu(self, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one GPU type."""
        if name not in {gpu.value for gpu in GPUS}:
            raise not_found("gpu type")
        return self._gpu(name, shows_stock=_wants_stock(query, ("POD", "CLUSTER", "SERVERLESS")))

    def _gpu(self, name: str, *, shows_stock: bool) -> dict[str, Any]:
        gpu = next(gpu for gpu in GPUS.values() if gpu.type.value == name)
        usd = gpu.usd_per_second
        price = _PODS_ONLY if usd is None else {**_PODS_ONLY, "serverless": round(usd * SECONDS_PER_HOUR, 4)}
        described = {
            "id": name,
            "name": name.removeprefix("NVIDIA ").removeprefix("GeForce "),
            "pool": gpu.pool.value,
            "manufacturer": "NVIDIA",
            "memory": gpu.vram_gb,
            "secure": True,
            "community": False,
            "price": price,
            "maxCount": _MOST_GPUS,
        }
        return {**described, **self._availability(name)} if shows_stock else described

    def cpus(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return all CPU flavours."""
        shows_stock = _wants_stock(query, ("POD", "SERVERLESS"))
        return [self._cpu(flavor, shows_stock=shows_stock) for flavor in _flavors()]

    def cpu(self, flavor: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one CPU flavour."""
        if flavor not in _flavors():
            raise not_found("cpu flavor")
        return self._cpu(flavor, shows_stock=_wants_stock(query, ("POD", "SERVERLESS")))

    def _cpu(self, flavor: str, *, shows_stock: bool) -> dict[str, Any]:
        sizes = self.vcpu_counts(flavor)
        described = {
            "id": flavor,
            "name": _CPU_KINDS[flavor[-1]],
            "group": _CPU_GENERATIONS[flavor[3]],
            "vcpu": {"min": 2, "max": max(sizes)},
            "ramGbPerVcpu": self.gb_per_vcpu(flavor),
            "price": {"securePerVcpu": 0.0, "serverlessPerVcpu": 0.0},
        }
        return {**described, **self._availability(flavor)} if shows_stock else described

    def datacenters(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return all data centres."""
        includes = _read_includes(query)
        return [self._datacenter(name.value, includes) for name in DataCenter]

    def datacenter(self, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return one data centre."""
        if not self.has_datacenter(name):
            raise not_found("data center")
        return self._datacenter(name, _read_includes(query))

    def _datacenter(self, name: str, includes: frozenset[str]) -> dict[str, Any]:
        described: dict[str, Any] = {
            "id": name,
            "name": name,
            "region": "NORTH_AMERICA" if name.startswith("US-") else "EUROPE",
            "networkVolumeTypes": ["STANDARD", "HIGH_PERFORMANCE"],
            "compliance": [],
            "globalNetwork": False,
        }
        if "GPU_AVAILABILITY" in includes:
            described["gpuAvailability"] = list(self._offers(name, [gpu.value for gpu in GPUS]))
        if "CPU_AVAILABILITY" in includes and (cpus := list(self._offers(name, _flavors()))):
            described["cpuAvailability"] = cpus
        return described

    def _offers(self, datacenter: str, resources: list[str]) -> Iterator[dict[str, str]]:
        for name in resources:
            if self._is_offered(datacenter, name):
                yield {"id": name, "name": name, "availability": self.level(datacenter, name)}

    def _is_offered(self, datacenter: str, resource: str) -> bool:
        """True unless a data centre has never had any; NONE in `stock` is one that has none now."""
        return (datacenter, resource) in self._stock or _usual_level(datacenter, resource) != "NONE"

    def _availability(self, resource: str) -> dict[str, Any]:
        offering = [name.value for name in DataCenter if self._is_offered(name.value, resource)]
        levels = {name: self.level(name, resource) for name in offering}
        best = max((LEVELS.index(level) for level in levels.values()), default=0)
        places = [{"id": name, "name": name, "availability": level} for name, level in levels.items()]
        return {"availability": LEVELS[best], "dataCenters": places} if best else {"availability": "NONE"}


def _usual_level(datacenter: str, resource: str) -> str:
    if resource in _flavors():
        places = _CPU5_DATACENTERS if resource.startswith("cpu5") else _CPU3_DATACENTERS
        return "HIGH" if datacenter in places else "NONE"
    return "HIGH"


def _flavors() -> list[str]:
    return list(dict.fromkeys(name.partition("-")[0] for name in CPU_FLAVORS))


def _wants_stock(query: Mapping[str, str], products: tuple[str, ...]) -> bool:
    include, product = query.get("include"), query.get("product")
    if include not in (None, "AVAILABILITY"):
        raise bad_request("include takes AVAILABILITY")
    if (include is None) != (product is None):
        raise bad_request("include=AVAILABILITY and product go together")
    if product is not None and not set(product.split(",")) <= set(products):
        raise bad_request(f"product takes {', '.join(products)}")
    return include is not None


def _read_includes(query: Mapping[str, str]) -> frozenset[str]:
    includes = frozenset(filter(None, query.get("include", "").split(",")))
    if not includes <= {"GPU_AVAILABILITY", "CPU_AVAILABILITY"}:
        raise bad_request("include takes GPU_AVAILABILITY, CPU_AVAILABILITY")
    return includes


def is_pool(name: str) -> bool:
    """True for the name of a GPU pool."""
    return name in set(GpuPool)
