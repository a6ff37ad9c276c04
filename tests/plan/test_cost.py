"""What traffic costs: the closed form against jobs one by one, and the break-even points."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.catalog import GpuPool, GpuType
from flashkit.errors import ConfigurationError
from flashkit.plan.cost import DAYS_PER_MONTH, Rates, Traffic, plan_cost, rates_of

L40S = rates_of(GpuType.NVIDIA_L40S)


def traffic(**other: Any) -> Traffic:
    return Traffic(**{"jobs_per_day": 2000.0, "seconds_per_job": 4.0, **other})


def run_jobs(load: Traffic, count: int = 200_000) -> tuple[float, float]:
    """Return cold starts and billed seconds a day of one worker, job by job."""
    chance = random.Random(1)
    now = end = cold = billed = 0.0
    is_first = True
    for _ in range(count):
        now += chance.expovariate(load.rate)
        if is_first or now > end + load.idle_timeout:
            billed += 0 if is_first else load.idle_timeout
            cold += 1
            billed += load.cold_start_seconds + load.seconds_per_job
            end = now + load.cold_start_seconds + load.seconds_per_job
            is_first = False
        else:
            billed += max(0.0, now - end) + load.seconds_per_job
            end = max(now, end) + load.seconds_per_job
    return cold / now * 86_400, billed / now * 86_400


@pytest.mark.parametrize(
    "load",
    [
        traffic(jobs_per_day=200),
        traffic(),
        traffic(jobs_per_day=5000, cold_start_seconds=8),
        traffic(jobs_per_day=3000, idle_timeout=120, cold_start_seconds=30),
        traffic(jobs_per_day=15_000),
    ],
)
def test_cold_starts_and_paid_seconds_are_what_jobs_one_by_one_make(load: Traffic):
    cold, billed = run_jobs(load)
    plan = plan_cost(load, L40S)
    assert plan.cold_starts.value == pytest.approx(cold, rel=0.02)
    assert plan.billed.value == pytest.approx(billed, rel=0.02)


def test_a_worker_that_takes_several_jobs_is_busy_while_there_is_one():
    load = traffic(jobs_per_day=20_000, concurrency=50, idle_timeout=5, cold_start_seconds=0)
    chance = random.Random(2)
    now, busy_until, busy, cold, idle = 0.0, -1e9, 0.0, 0, 0.0
    for _ in range(200_000):
        now += chance.expovariate(load.rate)
        gap = now - busy_until
        if gap > load.idle_timeout:
            cold += 1
        if gap > 0:
            idle += min(gap, load.idle_timeout)
            busy += load.seconds_per_job
        else:
            busy += max(0.0, now + load.seconds_per_job - busy_until)
        busy_until = max(busy_until, now + load.seconds_per_job)
    plan = plan_cost(load, L40S)
    assert plan.cold_starts.value == pytest.approx(cold / now * 86_400, rel=0.03)
    assert plan.billed.value == pytest.approx((busy + idle) / now * 86_400, rel=0.02)


def test_the_cost_is_the_paid_seconds_at_the_dated_price():
    plan = plan_cost(traffic(), L40S)
    assert plan.flex.value == pytest.approx(plan.billed.value * 0.00053 * DAYS_PER_MONTH)
    assert plan.per_job.value == pytest.approx(plan.billed.value * 0.00053 / 2000)
    assert plan.active.value == pytest.approx(0.00037 * 86_400 * DAYS_PER_MONTH)
    assert plan.pod.value == pytest.approx(0.79 * 24 * DAYS_PER_MONTH)
    assert "docs.runpod.io/serverless/pricing" in plan.flex.source
    assert "third party" in plan.pod.source


def test_the_break_even_is_where_both_cost_the_same():
    plan = plan_cost(traffic(), L40S)
    assert plan.active_break_even.value == pytest.approx(0.00037 / 0.00053)
    for jobs, price in ((plan.active_jobs.value, 0.00037), (plan.pod_jobs.value, 0.79 / 3600)):
        there = plan_cost(traffic(jobs_per_day=jobs), L40S)
        assert there.billed.value * 0.00053 == pytest.approx(price * 86_400, rel=1e-6)


def test_the_cheapest_way_changes_with_the_traffic():
    rates = replace(L40S, pod=None)
    assert plan_cost(traffic(jobs_per_day=100), rates).cheapest == "flex"
    assert plan_cost(traffic(jobs_per_day=15_000), rates).cheapest == "active"
    assert plan_cost(traffic(jobs_per_day=15_000), L40S).cheapest == "pod"


def test_where_flex_never_costs_as_much_there_is_no_break_even():
    rates = Rates(flex=0.0001, active=0.001)
    plan = plan_cost(traffic(), rates)
    assert plan.active_jobs is None
    assert plan.pod is None
    assert set(plan.to_dict()) == {"cheapest", "cold_starts", "billed", "flex", "per_job", "steady_workers", "active",
                                   "active_break_even"}  # fmt: skip


def test_a_load_of_several_workers_is_planned_at_80_percent():
    plan = plan_cost(traffic(jobs_per_day=86_400), L40S)  # 4 workers' worth
    assert plan.steady_workers.value == 5
    assert plan.billed.value <= 5 * 86_400


def test_jobs_that_come_without_a_pause_never_let_a_worker_stop():
    plan = plan_cost(traffic(jobs_per_day=10_000_000, seconds_per_job=0.001, idle_timeout=60), L40S)
    assert plan.cold_starts.value == 0
    assert plan.billed.value == pytest.approx(86_400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("jobs_per_day", 0.0), ("jobs_per_day", -5.0), ("jobs_per_day", float("nan")), ("seconds_per_job", 0.0),
        ("seconds_per_job", float("inf")), ("concurrency", 0), ("hours_per_day", 0.0), ("hours_per_day", 25.0),
        ("idle_timeout", -1.0), ("cold_start_seconds", -1.0),
    ],
)  # fmt: skip
def test_no_traffic_is_refused_with_the_option(field: str, value: float):
    with pytest.raises(ConfigurationError, match=f"{field}="):
        traffic(**{field: value})


def test_a_gpu_without_a_price_is_refused():
    with pytest.raises(ConfigurationError, match="no source gives a price of NVIDIA GeForce RTX 5090"):
        rates_of(GpuType.NVIDIA_RTX_5090)


def test_pools_and_several_gpus_have_prices_too():
    assert rates_of(GpuPool.AMPERE_80, 2).flex == pytest.approx(2 * 0.00076)
    assert rates_of(GpuPool.AMPERE_80).pod is None
    assert rates_of(GpuPool.AMPERE_80, pod_usd_per_hour=3.6).pod == pytest.approx(0.001)


@given(
    load=st.builds(
        Traffic, jobs_per_day=st.floats(0.1, 1e6), seconds_per_job=st.floats(0.01, 600),
        idle_timeout=st.floats(0, 3600), cold_start_seconds=st.floats(0, 600), concurrency=st.integers(1, 64),
        hours_per_day=st.floats(0.5, 24),
    )
)  # fmt: skip
def test_nothing_is_paid_twice(load: Traffic):
    plan = plan_cost(load, L40S)
    assert 0 <= plan.cold_starts.value <= load.jobs_per_day * 1.000001
    assert 0 < plan.billed.value <= plan.steady_workers.value * load.hours_per_day * 3600 * 1.000001
