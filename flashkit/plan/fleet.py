"""Fleets: how many GPUs a number of interactions needs, tier by tier, and what sharing one pool would change.

A tier is a share of the interactions, on one kind of GPU that carries so many of them at the same time. GPUs are
rounded up in each tier, as half of one cannot be rented.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from flashkit.errors import ConfigurationError
from flashkit.plan.figures import Figure

REFERENCE_SOURCE: Final = "the reference table of flashkit's requirements; prices of rented GPUs, undated"
_POOL_RISK: Final = 0.01
"""Chosen: a pool is made so large that its slots suffice in 99 of 100 moments."""
_SECONDS_PER_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Tier:
    """One kind of GPU of a fleet."""

    gpu: str
    share: Fraction
    """Of all interactions."""
    per_gpu: int
    """Interactions that one GPU carries at the same time."""
    usd_per_hour: Fraction
    """Of one GPU."""


REFERENCE_TIERS: Final = (
    Tier("L40S", Fraction("0.70"), 50, Fraction("0.72")),
    Tier("A100", Fraction("0.25"), 75, Fraction("1.04")),
    Tier("H100", Fraction("0.05"), 100, Fraction("2.51")),
)


@dataclass(frozen=True, slots=True)
class TierPlan:
    """The GPUs of one tier."""

    tier: Tier
    gpus: Figure
    usd_per_hour: Figure


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The GPUs for a number of interactions at the same time."""

    concurrent: int
    tiers: tuple[TierPlan, ...]
    gpus: Figure
    usd_per_hour: Figure
    usd_per_interaction_hour: Figure

    def usd_per_interaction(self, seconds: float) -> Figure:
        """Return what one interaction costs that lasts so long."""
        each = self.usd_per_interaction_hour.value
        return Figure(
            each * seconds / _SECONDS_PER_HOUR, "USD", f"${each:.6f} an hour x {seconds:g} s / 3600",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "concurrent": self.concurrent,
            "tiers": [
                {"gpu": each.tier.gpu, "gpus": int(each.gpus.value), "usd_per_hour": each.usd_per_hour.to_dict(),
                 "formula": each.gpus.formula}
                for each in self.tiers
            ],
            "gpus": int(self.gpus.value),
            "usd_per_hour": self.usd_per_hour.to_dict(),
            "usd_per_interaction_hour": self.usd_per_interaction_hour.to_dict(),
        }  # fmt: skip


def plan_fleet(
    concurrent: int, tiers: Sequence[Tier] = REFERENCE_TIERS, *, source: str = REFERENCE_SOURCE
) -> FleetPlan:
    """Return the fleet for so many interactions at the same time.

    Raises:
        ConfigurationError: There are none, or the shares do not make a whole.
    """
    check_tiers(tiers)
    if concurrent < 1:
        raise ConfigurationError(
            f"a fleet for {concurrent:,} interactions at the same time is none", hint="give at least 1"
        )
    plans = tuple(_plan_tier(concurrent, tier, source) for tier in tiers)
    total = sum(_hourly(each) for each in plans)
    gpus = sum(int(each.gpus.value) for each in plans)
    return FleetPlan(
        concurrent,
        plans,
        Figure(gpus, "GPUs", " + ".join(f"{each.gpus.value:g}" for each in plans)),
        Figure(float(total), "USD per hour", " + ".join(each.usd_per_hour.formula for each in plans), source),
        Figure(float(total / concurrent), "USD per interaction-hour", f"${float(total):,.2f} / {concurrent:,}", source),
    )


def check_tiers(tiers: Sequence[Tier]) -> None:
    """Refuse tiers that are no fleet.

    Raises:
        ConfigurationError: There is none, a number is not above 0, or the shares do not make a whole.
    """
    if not tiers:
        raise ConfigurationError("a fleet has at least one tier", hint="--tier L40S:100:50:0.72")
    for tier in tiers:
        if tier.share <= 0 or tier.per_gpu < 1 or tier.usd_per_hour < 0:
            raise ConfigurationError(
                f"the tier {tier.gpu} has a share of {float(tier.share):.0%}, {tier.per_gpu} interactions on a GPU and "
                f"${float(tier.usd_per_hour):g} an hour: share and interactions must be above 0, prices not below",
                hint="--tier GPU:PERCENT:INTERACTIONS_PER_GPU:USD_PER_HOUR, such as L40S:70:50:0.72",
            )
    total = sum(tier.share for tier in tiers)
    if total != 1:
        raise ConfigurationError(
            f"the tiers' shares are {float(total):.4%} together, not 100 %",
            hint="give each tier its share: --tier L40S:70:50:0.72 --tier A100:30:75:1.04",
        )


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The tiers with pools of their own, against one pool of each GPU that all of them share."""

    concurrent: int
    dedicated: FleetPlan
    """Each pool large enough for the peaks of its own tier."""
    shared: tuple[TierPlan, ...]
    """One pool for all, by GPU; each large enough for the peaks of all together."""

    @property
    def best(self) -> TierPlan:
        """The cheapest shared pool."""
        return min(self.shared, key=lambda each: each.usd_per_hour.value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "concurrent": self.concurrent,
            "dedicated": self.dedicated.to_dict(),
            "shared": [
                {"gpu": each.tier.gpu, "gpus": int(each.gpus.value), "usd_per_hour": each.usd_per_hour.to_dict(),
                 "formula": each.gpus.formula}
                for each in self.shared
            ],
        }  # fmt: skip


def compare_pools(
    concurrent: int, tiers: Sequence[Tier] = REFERENCE_TIERS, *, source: str = REFERENCE_SOURCE
) -> PoolPlan:
    """Return pools for each tier and shared ones, both with room for peaks.

    Arrivals are taken as independent of each other (Poisson), so the peaks of small tiers are larger in proportion:
    that is what a shared pool saves. It loses where a tier needs a GPU that the others do not.
    """
    plan_fleet(concurrent, tiers, source=source)  # refuses what is none
    own = tuple(_plan_pool(concurrent * tier.share, tier, source) for tier in tiers)
    total = sum(_hourly(each) for each in own)
    dedicated = FleetPlan(
        concurrent,
        own,
        Figure(sum(each.gpus.value for each in own), "GPUs", " + ".join(f"{each.gpus.value:g}" for each in own)),
        Figure(float(total), "USD per hour", " + ".join(each.usd_per_hour.formula for each in own), source),
        Figure(float(total / concurrent), "USD per interaction-hour", f"${float(total):,.2f} / {concurrent:,}", source),
    )
    return PoolPlan(concurrent, dedicated, tuple(_plan_pool(Fraction(concurrent), tier, source) for tier in tiers))


def peak_of(mean: float, risk: float = _POOL_RISK) -> int:
    """Return the number, 1 or more, that a Poisson variable of this mean is above in `risk` of all moments at most."""
    if mean > 500:  # noqa: PLR2004 - e^-mean has no digits left soon, and the normal curve is within one
        return math.ceil(mean + 2.3263 * math.sqrt(mean) + 0.5)
    chance = math.exp(-mean)
    total, count = chance, 0
    while total < 1 - risk:
        count += 1
        chance *= mean / count
        total += chance
    return max(1, count)


def _plan_tier(concurrent: int, tier: Tier, source: str) -> TierPlan:
    gpus = math.ceil(concurrent * tier.share / tier.per_gpu)
    formula = f"{concurrent:,} x {float(tier.share):.0%} / {tier.per_gpu} on a GPU, rounded up"
    return _with_cost(tier, Figure(gpus, "GPUs", formula), source)


def _plan_pool(mean: Fraction, tier: Tier, source: str) -> TierPlan:
    peak = peak_of(float(mean))
    formula = (
        f"{peak:,} at peak (mean {float(mean):,.0f}, not above it in 99 % of moments) / {tier.per_gpu}, rounded up"
    )
    return _with_cost(tier, Figure(math.ceil(peak / tier.per_gpu), "GPUs", formula), source)


def _with_cost(tier: Tier, gpus: Figure, source: str) -> TierPlan:
    price = float(tier.usd_per_hour)
    cost = float(Fraction(int(gpus.value)) * tier.usd_per_hour)
    return TierPlan(tier, gpus, Figure(cost, "USD per hour", f"{gpus.value:g} x ${price:g}", source))


def _hourly(plan: TierPlan) -> Fraction:
    return int(plan.gpus.value) * plan.tier.usd_per_hour
