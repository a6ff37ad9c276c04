"""Runpod's documentation on scaling and limits, sentence by sentence, on the platform without processes.

Read 2026-08-20 in "endpoint configurations", "send requests", "job states" and "optimization".
"""

from __future__ import annotations

import math

import pytest

from flashkit.emulator.platform import DrainWorker, FreezeWorker, StartWorker, WorkerState
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds
from tests.emulator.platform_world import World


def test_active_0_max_3_idle_timeout_5_s_queue_delay_4_s_flashboot_on():
    spec = EndpointSpec(name="tool", kind=Kind.CPU, cpu="cpu5c-2-4")
    assert spec.workers == WorkerBounds(0, 3)
    assert (spec.idle_timeout, spec.scaler_type, spec.scaler_value) == (5, ScalerType.QUEUE_DELAY, 4)
    assert spec.flashboot
    assert spec.execution_timeout_ms == PlatformDefaults().execution_timeout_ms == 600_000


def test_active_workers_are_always_there():
    world = World(workers=WorkerBounds(2, 3))
    assert len(world.workers) == 2
    for worker in world.workers:
        world.take(worker)
    world.pass_time(24 * 3600)
    assert [worker.state for worker in world.workers] == [WorkerState.IDLE] * 2


def test_an_endpoint_scales_to_zero_after_the_idle_timeout():
    world = World(idle_timeout=5)
    worker = world.ready_worker()
    world.pass_time(4.9)
    assert world.effects((DrainWorker, FreezeWorker)) == []
    world.pass_time(0.1)
    assert world.effects() == [DrainWorker("tool", worker.id)]


def test_queue_delay_adds_workers_when_jobs_wait_longer_than_its_value():
    world = World(scaler_value=4)
    world.running_job()
    world.submit()
    world.pass_time(3.9)
    assert world.effects(StartWorker) == []
    world.pass_time(0.1)
    assert len(world.effects(StartWorker)) == 1


@pytest.mark.parametrize(("queued", "running", "value"), [(1, 0, 4), (7, 1, 4), (8, 1, 4), (3, 2, 1), (40, 4, 4)])
def test_request_count_keeps_the_sum_of_jobs_divided_by_its_value(queued, running, value):
    """ceil((jobs in queue + jobs in progress) / value), never above the maximum."""
    world = World(workers=WorkerBounds(0, 9), scaler_type=ScalerType.REQUEST_COUNT, scaler_value=value)
    if running:
        worker = world.ready_worker()
        for _ in range(running):
            world.submit()
        world.take(worker, limit=running)
    before = len(world.workers)
    for _ in range(queued):
        world.submit()
    assert len(world.workers) == max(before, min(9, math.ceil((queued + running) / value)))


def test_low_priority_jobs_do_not_scale():
    world = World()
    job = world.submit(low_priority=True)
    world.pass_time(60)
    assert world.workers == ()
    world.submit()
    assert world.take(world.workers[0], limit=5)[0] is job


def test_a_cold_start_over_seven_minutes_makes_the_worker_unfit_and_init_timeout_extends_it():
    assert PlatformDefaults().init_timeout == 7 * 60
    for env, seconds in (({}, 420), ({"RUNPOD_INIT_TIMEOUT": "800"}, 800)):
        world = World(env=env)
        world.submit()
        (worker,) = world.workers
        world.pass_time(seconds - 0.1)
        assert worker.state is WorkerState.INITIALIZING
        world.pass_time(0.1)
        assert worker.state is WorkerState.DRAINING


def test_the_execution_timeout_counts_from_pick_up_and_the_time_to_live_from_submission():
    world = World(execution_timeout_ms=10_000)
    waiting = world.submit(ttl_ms=60_000)
    world.pass_time(30)
    assert world.take(world.workers[0]) == [waiting]
    world.pass_time(9.9)
    assert waiting.status is JobStatus.IN_PROGRESS
    world.pass_time(0.1)
    assert waiting.status is JobStatus.TIMED_OUT
    world.pass_time(20)
    assert world.platform.jobs("tool") == (), "its time to live is over, in whatever state it is"


def test_a_job_past_its_time_to_live_is_deleted_even_while_it_runs():
    world = World()
    _, job = world.running_job(ttl_ms=10_000)
    world.pass_time(10)
    assert job.id not in [other.id for other in world.platform.jobs("tool")]


@pytest.mark.parametrize(("sync", "minutes"), [(False, 30), (True, 1)])
def test_results_are_kept_thirty_minutes_and_those_of_runsync_one(sync, minutes):
    world = World()
    worker, job = world.running_job(sync=sync)
    world.finish(worker, job, output=1)
    world.pass_time(minutes * 60 - 1)
    assert job in world.platform.jobs("tool")
    world.pass_time(1)
    assert job not in world.platform.jobs("tool")
