"""Fleets: the reference table to the cent, and pools that are shared or not."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.errors import ConfigurationError
from flashkit.plan.fleet import REFERENCE_TIERS, Tier, compare_pools, peak_of, plan_fleet


@pytest.mark.parametrize(
    ("concurrent", "tiers", "gpus", "usd_per_hour"),
    [
        (1_000, [14, 4, 1], 19, "16.75"),
        (10_000, [140, 34, 5], 179, "148.71"),
        (100_000, [1_400, 334, 50], 1_784, "1480.86"),
    ],
)
def test_the_reference_table_is_reproduced_to_the_cent(concurrent: int, tiers: list[int], gpus: int, usd_per_hour: str):
    plan = plan_fleet(concurrent)
    assert [each.gpus.value for each in plan.tiers] == tiers
    assert plan.gpus.value == gpus
    assert f"{plan.usd_per_hour.value:.2f}" == usd_per_hour


def test_an_interaction_of_the_reference_fleet_costs_what_the_table_says():
    plan = plan_fleet(10_000)
    assert f"{plan.usd_per_interaction_hour.value:.4f}" == "0.0149"
    assert f"{plan.usd_per_interaction(3).value:.7f}" == "0.0000124"
    assert plan.usd_per_hour.formula == "140 x $0.72 + 34 x $1.04 + 5 x $2.51"
    assert plan.tiers[1].gpus.formula == "10,000 x 25% / 75 on a GPU, rounded up"


@given(concurrent=st.integers(1, 10**7))
def test_every_tier_has_room_for_its_share_and_no_gpu_too_many(concurrent: int):
    for each in plan_fleet(concurrent).tiers:
        share = concurrent * each.tier.share
        assert each.gpus.value * each.tier.per_gpu >= share > (each.gpus.value - 1) * each.tier.per_gpu


@pytest.mark.parametrize("concurrent", [0, -5])
def test_no_interactions_are_no_fleet(concurrent: int):
    with pytest.raises(ConfigurationError, match="interactions at the same time is none"):
        plan_fleet(concurrent)


@pytest.mark.parametrize(
    ("tiers", "told"),
    [
        ((), "at least one tier"),
        ((Tier("L40S", Fraction("0.9"), 50, Fraction(1)),), "shares are 90.0000% together"),
        ((Tier("L40S", Fraction(1), 0, Fraction(1)),), "0 interactions on a GPU"),
        ((Tier("L40S", Fraction(1), 1, Fraction(-1)),), "\\$-1 an hour"),
    ],
)
def test_tiers_that_are_no_fleet_are_refused(tiers: tuple[Tier, ...], told: str):
    with pytest.raises(ConfigurationError, match=told):
        plan_fleet(100, tiers)


def test_a_shared_pool_needs_fewer_gpus_as_peaks_do_not_come_together():
    tiers = tuple(Tier(f"tier {n}", Fraction(1, 4), 10, Fraction(1)) for n in range(4))
    plan = compare_pools(200, tiers)
    assert plan.dedicated.gpus.value == 4 * 7  # 50 on average, 67 at peak
    assert plan.best.gpus.value == 24  # 200 on average, 233 or 234 at peak
    assert plan.best.usd_per_hour.value < plan.dedicated.usd_per_hour.value


def test_pools_are_planned_for_peaks_and_fleets_for_the_number_that_was_given():
    plan = compare_pools(1000)
    assert plan.dedicated.usd_per_hour.value > plan_fleet(1000).usd_per_hour.value
    assert {each.tier.gpu for each in plan.shared} == {each.gpu for each in REFERENCE_TIERS}


def test_the_peak_is_the_99th_percentile():
    # From tables of the Poisson distribution.
    assert [peak_of(mean) for mean in (0.5, 3, 10, 50)] == [3, 8, 18, 67]


@given(mean=st.floats(0.01, 3000))
def test_the_peak_grows_smoothly_with_the_mean(mean: float):
    assert max(1, mean) <= peak_of(mean) <= peak_of(mean + 1) <= peak_of(mean) + 5
