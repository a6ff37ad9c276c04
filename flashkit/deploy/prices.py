"""What a deployment costs an hour: its minimum of workers all the time, its maximum at most.

Flex prices are the platform's own, read from its catalogue, per GPU and hour. Prices of workers that are always there
are flashkit's dated table (`catalog.ACTIVE_USD_PER_SECOND`): REST v2 does not say them. What is not known stays
unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.catalog import GPUS, GpuType, usd_per_second, volume_usd_per_month
from flashkit.deploy.hardware import CpuChoice, choose_gpus, known_pools
from flashkit.deploy.wishes import EndpointWish

SECONDS_PER_HOUR: Final = 3_600
HOURS_PER_MONTH: Final = 730


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars an hour; None where a price is not known."""

    name: str
    hardware: str
    """What is priced, in words."""
    always: float | None
    at_most: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"name": self.name, "hardware": self.hardware, "always": self.always, "at_most": self.at_most}


@dataclass(frozen=True, slots=True)
class PriceList:
    """Flex prices in US dollars an hour."""

    gpus: Mapping[str, float] = field(default_factory=dict)
    """By GPU type."""
    vcpus: Mapping[str, float] = field(default_factory=dict)
    """Of one vCPU, by flavour."""

    @classmethod
    def read(cls, gpus: Sequence[Mapping[str, Any]], cpus: Sequence[Mapping[str, Any]]) -> PriceList:
        """Return the prices of the platform's catalogue; one of 0 is none."""
        by_gpu = ((str(gpu["id"]), (gpu.get("price") or {}).get("serverless")) for gpu in gpus)
        by_cpu = ((str(cpu["id"]), (cpu.get("price") or {}).get("serverlessPerVcpu")) for cpu in cpus)
        return cls({name: price for name, price in by_gpu if price}, {name: price for name, price in by_cpu if price})


def cost_of(wish: EndpointWish, prices: PriceList, pools: Mapping[str, Sequence[str]] | None = None) -> Cost:
    """Return what an endpoint costs an hour; of several GPUs the dearest counts."""
    spec, workers = wish.spec, wish.workers
    if spec.cpu is not None:
        choice = CpuChoice.of(spec.cpu)
        price = prices.vcpus.get(choice.flavor)
        hourly = None if price is None else price * choice.vcpus
        # No source says that CPU workers that are always there cost less.
        return Cost(wish.name, spec.cpu, _times(workers.min, hourly), _times(workers.max, hourly))
    accepted = choose_gpus(spec.gpu, pools or known_pools()).accepted
    flex = _dearest(prices.gpus.get(name) for name in accepted)
    active = _dearest(_active_price(name, prices) for name in accepted)
    count = f"{spec.gpu_count}x " if spec.gpu_count > 1 else ""
    return Cost(
        wish.name,
        count + ", ".join(dict.fromkeys(gpu.value for gpu in spec.gpu)),
        _times(workers.min * spec.gpu_count, active),
        _times(workers.max * spec.gpu_count, flex),
    )


def volume_cost(name: str, size_gb: int) -> Cost:
    """Return what a network volume costs an hour, used or not."""
    hourly = volume_usd_per_month(size_gb) / HOURS_PER_MONTH
    return Cost(name, f"{size_gb} GB volume", hourly, hourly)


def _active_price(name: str, prices: PriceList) -> float | None:
    """Return the hourly price of a GPU that is always there: the dated one, never above the flex price of today."""
    if name not in {gpu.value for gpu in GPUS}:
        return prices.gpus.get(name)
    active = usd_per_second(GpuType(name), is_active=True)
    flex = prices.gpus.get(name)
    if active is None:
        return flex
    hourly = active * SECONDS_PER_HOUR
    return hourly if flex is None else min(hourly, flex)


def _times(count: int, price: float | None) -> float | None:
    """Return the price of so many; none cost nothing, whatever one costs."""
    if count == 0:
        return 0.0
    return None if price is None else count * price


def _dearest(prices: Iterable[float | None]) -> float | None:
    found = list(prices)
    known = [price for price in found if price is not None]
    return max(known) if known and len(known) == len(found) else None


def total(costs: Sequence[Cost]) -> Cost:
    """Return the sum; unknown where a part is."""
    always = [cost.always for cost in costs]
    at_most = [cost.at_most for cost in costs]
    return Cost("total", "", _sum(always), _sum(at_most))


def _sum(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None
