"""The scalers, as plain functions of a load."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flashkit.emulator.scaling import Load, desired_workers, kept_workers, scaling_due_at
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds


def make_spec(scaler: ScalerType = ScalerType.QUEUE_DELAY, value: int = 4, low: int = 0, high: int = 5) -> EndpointSpec:
    return EndpointSpec(
        name="tool",
        kind=Kind.CPU,
        cpu="cpu5c-2-4",
        workers=WorkerBounds(low, high),
        scaler_type=scaler,
        scaler_value=value,
    )


DELAY = make_spec()
COUNT = make_spec(ScalerType.REQUEST_COUNT)


@pytest.mark.parametrize("spec", [DELAY, COUNT])
def test_nothing_waits_and_nothing_runs_so_only_the_floor_is_wanted(spec):
    assert desired_workers(spec, Load(), now=0) == 0
    assert desired_workers(replace(spec, workers=WorkerBounds(2, 5)), Load(), now=0) == 2


@pytest.mark.parametrize("spec", [DELAY, COUNT])
def test_a_waiting_job_without_any_worker_wants_one_at_once(spec):
    assert desired_workers(spec, Load(queued=1, oldest_queued_at=0), now=0) == 1


@pytest.mark.parametrize(
    ("load", "now", "wanted"),
    [
        (Load(queued=9, oldest_queued_at=10, workers=2), 13.9, 2),
        (Load(queued=9, oldest_queued_at=10, workers=2), 14.0, 3),
        (Load(queued=9, oldest_queued_at=10, workers=2, initializing=1), 100, 2),
        (Load(queued=9, oldest_queued_at=10, workers=5), 100, 5),
        (Load(queued=0, running=9, workers=2), 100, 2),
    ],
)
def test_queue_delay_adds_one_worker_when_the_first_job_waited_too_long(load, now, wanted):
    assert desired_workers(DELAY, load, now=now) == wanted


@pytest.mark.parametrize(("queued", "running", "wanted"), [(1, 0, 1), (4, 0, 1), (5, 0, 2), (4, 5, 3), (100, 0, 5)])
def test_request_count_wants_one_worker_for_so_many_jobs(queued, running, wanted):
    assert desired_workers(COUNT, Load(queued=queued, running=running, oldest_queued_at=0), now=0) == wanted


def test_request_count_adds_nothing_while_nothing_waits():
    """Otherwise a worker with many slots would make idle ones come and go for ever."""
    assert desired_workers(COUNT, Load(running=20, workers=1), now=0) == 1


BALANCED = replace(COUNT, load_balanced=True, execution_timeout_ms=330_000)


@pytest.mark.parametrize(("running", "wanted"), [(0, 0), (1, 1), (4, 1), (5, 2), (100, 5)])
def test_requests_that_run_call_for_workers_and_keep_them(running, wanted):
    assert desired_workers(BALANCED, Load(running=running), now=0) == wanted
    assert kept_workers(BALANCED, Load(running=running, workers=5)) == wanted
    assert kept_workers(COUNT, Load(running=running, workers=5)) == 0


loads = st.builds(
    Load,
    queued=st.integers(0, 50),
    running=st.integers(0, 50),
    oldest_queued_at=st.floats(0, 1e6),
    workers=st.integers(0, 9),
    initializing=st.integers(0, 9),
)
specs = st.builds(
    make_spec,
    st.sampled_from(ScalerType),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(3, 9),
)


@given(spec=specs, load=loads, now=st.floats(0, 1e6))
def test_the_wish_stays_between_floor_and_ceiling_and_takes_no_worker_away(spec, load, now):
    wanted = desired_workers(spec, load, now=now)
    assert spec.workers.min <= wanted <= spec.workers.max
    assert wanted >= min(load.workers, spec.workers.max)


@given(spec=specs, load=loads, now=st.floats(0, 1e6))
def test_the_wish_changes_with_time_exactly_at_the_announced_moment(spec, load, now):
    assume(load.workers >= spec.workers.min)  # below it, the floor hides what the scaler adds
    due_at = scaling_due_at(spec, load)
    if due_at is None:
        assert desired_workers(spec, load, now=now) == desired_workers(spec, load, now=1e9)
    else:
        before = desired_workers(spec, load, now=min(now, due_at - 1e-3))
        assert desired_workers(spec, load, now=due_at) == before + 1
