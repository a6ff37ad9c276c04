"""Runs: what a load does to an endpoint, in numbers that can be worked out by hand, and in general."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashkit.catalog import resolve_gpus
from flashkit.errors import InputError
from flashkit.plan import cost
from flashkit.protocol import PlatformDefaults
from flashkit.simulation.load import Load, Traffic, load_of
from flashkit.simulation.policies import BATCH, INTERACTIVE, QueueDepth, ScheduledFloor, plan_floors
from flashkit.simulation.results import POINTS, Prices, Result, percentile, summarise
from flashkit.simulation.running import Run, WorkerTimes, simulate
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

TEN_SECONDS = WorkerTimes(cold_start=10.0, thaw=1.0)


def make_spec(low: int = 0, high: int = 3, **options) -> EndpointSpec:
    chosen = {"kind": Kind.GPU, "gpu": resolve_gpus(("L40S",)), "idle_timeout": 5, "flashboot": False} | options
    return EndpointSpec(name="llm", workers=WorkerBounds(low, high), **chosen)


def run(spec: EndpointSpec, *jobs: tuple[float, float], window: float | None = None, **options) -> Run:
    load = load_of(jobs)
    if window is not None:
        load = dataclasses.replace(load, window_seconds=window)
    return simulate(spec, load, options.pop("times", TEN_SECONDS), **options)


def waits_of(*arguments, **options) -> list[float]:
    return [round(wait, 6) for wait in run(*arguments, **options).waits]


def test_the_first_job_waits_for_the_cold_start_and_the_next_one_does_not():
    seen = run(make_spec(), (0, 2), (13, 2))
    assert list(seen.waits) == [10.0, 0.0]
    assert (seen.cold_starts, seen.cold_jobs) == (1, 1)


def test_a_worker_of_the_floor_is_up_when_the_load_begins():
    assert waits_of(make_spec(1), (0, 2), (13, 2)) == [0.0, 0.0]


def test_a_worker_that_is_idle_for_too_long_stops_and_the_next_job_starts_another():
    seen = run(make_spec(), (0, 2), (18, 2))
    assert list(seen.waits) == [10.0, 10.0]
    result = summarise(seen)
    # 10 s of cold start, 2 s of work, 5 s of idling; then 10 s and 2 s until the last job is done
    assert result.worker_seconds == pytest.approx(17 + 12)
    assert result.utilisation == pytest.approx(4 / 29)
    assert result.cold_share == 1.0
    assert result.most_workers == 1


def test_flashboot_freezes_idle_workers_so_that_the_next_start_is_warm_and_the_time_between_free():
    seen = run(make_spec(flashboot=True), (0, 2), (100, 2))
    assert list(seen.waits) == [10.0, 1.0]
    assert (seen.cold_starts, seen.warm_starts, seen.cold_jobs) == (1, 1, 1)
    assert summarise(seen).worker_seconds == pytest.approx(17 + 3)


def test_a_worker_is_not_kept_frozen_for_ever():
    assert waits_of(make_spec(flashboot=True), (0, 2), (1000, 2)) == [10.0, 10.0]


def test_a_job_that_waits_longer_than_the_scaler_allows_gets_another_worker():
    patient = make_spec(1, 2, scaler_value=30)
    assert waits_of(patient, (0, 20), (0, 20)) == [0.0, 20.0]
    eager = make_spec(1, 2, scaler_value=2)
    assert waits_of(eager, (0, 20), (0, 20)) == [0.0, 12.0]  # 2 s until it is late, 10 s of cold start


def test_the_request_count_scaler_starts_as_many_workers_as_jobs_call_for():
    spec = make_spec(0, 5, scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    seen = run(spec, (0, 5), (0, 5), (0, 5))
    assert list(seen.waits) == [10.0] * 3
    assert seen.cold_starts == 3


def test_the_maximum_bounds_the_workers():
    spec = make_spec(0, 2, scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    result = summarise(run(spec, *[(0, 5)] * 6))
    assert result.most_workers == 2
    assert result.waits.longest == 20.0  # the third job of a worker, after its cold start


def test_a_worker_with_concurrency_runs_jobs_at_the_same_time():
    assert waits_of(make_spec(1, 1, concurrency=2), (0, 4), (1, 4), (2, 4)) == [0.0, 0.0, 2.0]


def test_a_job_over_its_execution_timeout_is_ended_and_its_worker_goes_on():
    seen = run(make_spec(1, 1, execution_timeout_ms=5_000), (0, 60), (1, 1))
    result = summarise(seen)
    assert (result.completed, result.timed_out, result.dropped) == (1, 1, 0)
    assert list(seen.waits) == [0.0, 4.0]
    assert seen.cold_starts == 1


def test_a_job_whose_time_to_live_runs_out_in_the_queue_is_dropped_and_counts_as_having_waited():
    """The second job is ended while it runs: the time to live counts from submission."""
    result = summarise(run(make_spec(1, 1), (0, 15), (0, 15), (0, 15), ttl_ms=20_000))
    assert (result.completed, result.timed_out, result.dropped) == (1, 1, 1)
    assert result.waits.longest == 20.0


def test_the_time_until_a_worker_is_gone_is_paid():
    slow = WorkerTimes(cold_start=10.0, exit=3.0)
    assert summarise(run(make_spec(), (0, 2), window=100.0, times=slow)).worker_seconds == pytest.approx(20)
    assert summarise(run(make_spec(), (0, 2), window=100.0)).worker_seconds == pytest.approx(17)


def test_the_floor_costs_the_active_price_and_what_comes_on_top_the_flex_price():
    result = summarise(
        run(make_spec(1, 2, scaler_value=2), (0, 20), (0, 20), window=100.0), Prices(flex=2.0, active=1.0)
    )
    assert result.active_seconds == pytest.approx(100)
    # from 2 s on: cold start until 12, the job until 32, idle until 37 as only one of the two is kept
    assert result.flex_seconds == pytest.approx(23, abs=2.01)
    assert result.cost_usd == pytest.approx(100 + 2 * result.flex_seconds)
    assert result.cost_per_hour == pytest.approx(36 * (result.cost_usd or 0))


def test_prices_are_those_of_the_preferred_gpu_and_of_a_cpu_none():
    one, two = Prices.of(make_spec()), Prices.of(make_spec(gpu_count=2))
    assert (one.flex, one.active) == (0.00053, 0.00037)
    assert two.flex == pytest.approx(2 * 0.00053)
    assert Prices.of(make_spec(kind=Kind.CPU, gpu=(), cpu="cpu3c-2-4")) == Prices(None, None)


def test_what_has_no_price_has_no_cost():
    spec = make_spec(kind=Kind.CPU, gpu=(), cpu="cpu3c-2-4")
    result = summarise(run(spec, (0, 2)))
    assert (result.cost_usd, result.cost_per_hour) == (None, None)


def test_settings_with_which_no_worker_would_ever_start_are_refused():
    with pytest.raises(InputError, match="no worker of endpoint 'llm' would ever start: a cold start takes 500 s"):
        run(make_spec(), (0, 1), times=WorkerTimes(cold_start=500.0))
    run(make_spec(env={"RUNPOD_INIT_TIMEOUT": "900"}), (0, 1), times=WorkerTimes(cold_start=500.0))


def test_an_endpoint_without_a_queue_is_refused():
    spec = make_spec(load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT, execution_timeout_ms=60_000)
    with pytest.raises(InputError, match="is load-balanced"):
        run(spec, (0, 1))


@pytest.mark.parametrize("times", [{"cold_start": -1}, {"thaw": math.nan}, {"exit": math.inf}])
def test_times_of_workers_that_cannot_be_are_refused(times):
    with pytest.raises(InputError, match="is no time of a worker"):
        WorkerTimes(**times)


def test_progress_is_told_until_the_last_job():
    told: list[int] = []
    simulate(make_spec(), Traffic(jobs_per_second=50, seconds=0.01, window_seconds=100).make(), on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(5000, rel=0.1)


# ------------------------------------------------------------------ in general

jobs = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 30)), min_size=1, max_size=40)
specs = st.builds(
    make_spec,
    st.integers(0, 2),
    st.integers(2, 5),
    idle_timeout=st.integers(1, 60),
    scaler_type=st.sampled_from(ScalerType),
    scaler_value=st.integers(1, 8),
    concurrency=st.integers(1, 4),
    flashboot=st.booleans(),
    execution_timeout_ms=st.sampled_from([5_000, 600_000]),
)
policies = st.sampled_from([None, BATCH, INTERACTIVE, ScheduledFloor((0, 2), 10.0)])
times = st.builds(WorkerTimes, st.floats(0, 60), st.floats(0, 5), st.floats(0, 5))


@settings(max_examples=200, deadline=None)
@given(specs, jobs, times, policies, st.sampled_from([None, 15_000]))
def test_every_job_ends_once_and_no_worker_is_lost(spec, jobs, times, policy, ttl_ms):
    seen = run(spec, *jobs, times=times, policy=policy, ttl_ms=ttl_ms)
    result = summarise(seen)
    assert result.completed + result.timed_out + result.dropped == len(jobs)
    assert all(wait >= 0 for wait in seen.waits)
    assert result.waits.p50 <= result.waits.p95 <= result.waits.p99 <= result.waits.longest
    up, most = 0, 0
    for _, change in seen.staffing:
        up += change
        most = max(most, up)
        assert up >= 0
    assert most == result.most_workers <= 2 * seen.spec.workers.max
    assert 0 <= result.active_seconds <= result.worker_seconds + 1e-6
    assert 0 <= result.utilisation <= 1 + 1e-9
    assert result.seconds >= seen.load.window_seconds


@settings(max_examples=50, deadline=None)
@given(specs, jobs, times, policies)
def test_the_same_run_gives_the_same_result(spec, jobs, times, policy):
    assert summarise(run(spec, *jobs, times=times, policy=policy)) == summarise(
        run(spec, *jobs, times=times, policy=policy)
    )


@settings(max_examples=50, deadline=None)
@given(specs, jobs, times)
def test_the_points_of_the_plot_have_every_job_and_every_worker_second(spec, jobs, times):
    result = summarise(run(spec, *jobs, times=times))
    if not result.points:
        assert result.seconds < 1e-9  # nothing to draw
        return
    assert len(result.points) == POINTS
    assert sum(point.jobs for point in result.points) == len(jobs)
    width = result.seconds / POINTS
    assert math.fsum(point.workers * width for point in result.points) == pytest.approx(result.worker_seconds, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(jobs, st.integers(1, 4))
def test_workers_that_are_always_there_make_nobody_wait_longer_when_there_are_more(jobs, count):
    """First come, first served: one more server, when all are always up, helps every job."""
    fewer = run(make_spec(count, count), *jobs)
    more = run(make_spec(count + 1, count + 1), *jobs)
    assert all(late >= early - 1e-9 for late, early in zip(fewer.waits, more.waits, strict=True))
    assert fewer.cold_starts == count


@settings(max_examples=50, deadline=None)
@given(jobs)
def test_as_many_workers_as_jobs_run_at_once_let_nobody_wait(jobs):
    load = load_of(jobs)
    count = load.most_at_once()
    assert max(simulate(make_spec(count, count), load, TEN_SECONDS).waits) == 0.0


@settings(max_examples=50, deadline=None)
@given(jobs, st.floats(1, 50))
def test_a_single_worker_makes_waits_that_a_short_recursion_gives(jobs, cold_start):
    """The wait of a first-come, first-served server is Lindley's recursion; the worker never stops."""
    seen = run(make_spec(1, 1), *jobs, times=WorkerTimes(cold_start=cold_start))
    free_at = 0.0
    for arrival, seconds, wait in zip(seen.load.arrivals, seen.load.seconds, seen.waits, strict=True):
        assert wait == pytest.approx(max(0.0, free_at - arrival), abs=1e-6)
        free_at = max(free_at, arrival) + seconds


def test_the_mean_wait_of_one_server_is_what_queueing_theory_says():
    """M/D/1: rho / (2 (1 - rho)) service times; 0.5 at a utilisation of one half."""
    load = Traffic(jobs_per_second=0.5, seconds=1.0, variation=0, window_seconds=100_000).make()
    assert summarise(simulate(make_spec(1, 1), load)).waits.mean == pytest.approx(0.5, rel=0.05)


# ------------------------------------------------------------------ policies


def test_a_schedule_has_the_workers_of_the_hour_with_headroom():
    load = load_of([(0.0, 1.0), *((3600.0 + 3 * n, 6.0) for n in range(1200))])
    load = Load(load.arrivals, load.seconds, 7200.0)
    assert plan_floors(load) == (1, 3)  # 2 at work all the time, 30 % more
    assert plan_floors(load, concurrency=2) == (1, 2)
    assert plan_floors(load, headroom=0.0) == (1, 2)


def test_hours_of_several_days_are_averaged():
    busy = [(float(second), 2.0) for second in range(3600)]
    load = Load([at for at, _ in busy], [seconds for _, seconds in busy], 48 * 3600.0)
    floors = plan_floors(load)
    assert len(floors) == 24
    assert floors[:2] == (2, 0)  # 2 on one day, none on the other, 30 % more


def test_a_scheduled_floor_is_up_in_time_and_goes_when_its_hour_is_over():
    jobs = [(3600.0, 5.0), (3600.0, 5.0), (7300.0, 1.0)]
    spec = make_spec(0, 3)
    seen = run(spec, (0.0, 1.0), *jobs, policy=ScheduledFloor((0, 2, 0), 10.0))
    assert list(seen.waits) == [10.0, 0.0, 0.0, 10.0]
    assert [(round(at), floor) for at, floor in seen.floors[1:]] == [(3590, 2), (7200, 0)]
    result = summarise(seen)
    assert result.active_seconds == pytest.approx(2 * 3610)


def test_a_queue_depth_policy_waits_until_the_queue_has_been_deep_for_long_enough():
    policy = QueueDepth("test", per_worker=0, hold_seconds=30.0)
    seen = run(make_spec(1, 3), (0, 200), (1, 10), policy=policy)
    assert seen.waits[1] == pytest.approx(30 + 10, abs=6)  # held for 30 s, looked at every 5 s, cold start
    assert run(make_spec(1, 3), (0, 200), (1, 10), policy=INTERACTIVE).waits[1] == 199.0


def test_a_queue_depth_policy_lets_workers_go_after_five_minutes():
    seen = run(make_spec(0, 3), (0, 10), window=1000.0, policy=BATCH)
    assert summarise(seen).worker_seconds == pytest.approx(10 + 10 + 300)


@pytest.mark.parametrize("floors", [(), (1, -1)])
def test_a_schedule_that_cannot_be_is_refused(floors):
    with pytest.raises(InputError, match="is no schedule"):
        ScheduledFloor(floors)


def test_the_percentile_is_the_nearest_rank():
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.01) == 7.0


def test_a_result_is_plain_json():
    import orjson

    result = summarise(run(make_spec(), (0, 2)))
    values = orjson.loads(orjson.dumps(result.to_dict()))
    assert values["waits"]["p95_seconds"] == 10.0
    assert values["jobs"] == 1
    assert isinstance(result, Result)


def test_the_platforms_own_defaults_can_be_changed():
    seen = run(make_spec(flashboot=True), (0, 2), (1000, 2), defaults=PlatformDefaults(frozen_keep=5_000.0))
    assert list(seen.waits) == [10.0, 1.0]


@pytest.mark.parametrize("jobs_per_day", [500, 3000, 10_000])
def test_the_closed_form_of_the_cost_plan_and_the_simulation_agree(jobs_per_day):
    """One worker that starts and stops, jobs that come at random: `flashkit.plan.cost` has it as a formula."""
    expected = cost.plan_cost(
        cost.Traffic(jobs_per_day=jobs_per_day, seconds_per_job=3.0, idle_timeout=20, cold_start_seconds=15.0),
        cost.Rates(flex=0.0005),
    )
    days = 30_000 / jobs_per_day
    load = Traffic(jobs_per_second=jobs_per_day / 86_400, seconds=3.0, window_seconds=days * 86_400).make()
    spec = make_spec(0, 1, idle_timeout=20)
    result = summarise(simulate(spec, load, WorkerTimes(cold_start=15.0)), Prices(flex=0.0005))
    assert result.cold_starts / days == pytest.approx(expected.cold_starts.value, rel=0.03)
    assert result.worker_seconds / days == pytest.approx(expected.billed.value, rel=0.03)
