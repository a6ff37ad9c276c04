"""How workers come up, or do not: phases of a cold start, machines, timeouts, starts that come to nothing."""

from __future__ import annotations

import math

import pytest

from flashkit.emulator.platform import (
    CapacityChanged,
    ColdStart,
    EnterPhase,
    GiveUpWorker,
    KillWorker,
    StartWorker,
    WorkerState,
)
from flashkit.errors import InputError
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import ScalerType, WorkerBounds
from tests.emulator.platform_world import DEFAULTS, World, make_spec, report_of

# ---------------------------------------------------------------------- phases


def cold_world(**options):
    world = World(**options)
    world.platform.set_cold_start("tool", ColdStart(pull_s=20, load_s=30))
    return world


def test_a_process_starts_after_the_phases_of_its_cold_start():
    world = cold_world()
    world.submit()
    (worker,) = world.workers
    assert world.effects() == [EnterPhase("tool", worker.id, "pulling the image", 20)]
    assert (worker.state, worker.phase) == (WorkerState.INITIALIZING, "pulling the image")
    world.pass_time(20)
    assert world.effects() == [EnterPhase("tool", worker.id, "loading the weights", 30)]
    world.pass_time(30)
    assert world.effects() == [StartWorker("tool", worker.id)]
    assert worker.phase == ""
    assert world.now - worker.started_at == 50


def test_phases_that_take_no_time_are_left_out():
    world = World()
    world.platform.set_cold_start("tool", ColdStart(load_s=1))
    world.submit()
    assert [effect.phase for effect in world.effects(EnterPhase)] == ["loading the weights"]


def test_a_worker_in_a_phase_counts_as_initializing_and_no_other_is_started_for_its_job():
    world = cold_world()
    world.submit()
    world.pass_time(15)
    assert world.health("workers") == {"initializing": 1}
    assert len(world.workers) == 1


@pytest.mark.parametrize("end", ["kill", "reclaim", "replace", "cool", "remove"])
def test_a_worker_in_a_phase_ends_at_once_as_there_is_no_process_to_wait_for(end):
    world = cold_world()
    world.submit()
    (worker,) = world.workers
    world.effects()
    match end:
        case "kill":
            world.platform.kill_worker(world.now, worker.id)
        case "reclaim":
            world.platform.reclaim_worker(world.now, worker.id)
        case "replace":
            world.platform.replace_endpoint(world.now, world.spec)
        case "cool":
            assert world.platform.kill_workers(world.now, "tool") == 1
        case "remove":
            world.platform.remove_endpoint(world.now, "tool")
    effects = world.effects()
    assert [effect.worker_id for effect in effects if isinstance(effect, GiveUpWorker)] == [worker.id]
    assert not any(isinstance(effect, KillWorker) for effect in effects)
    if end == "remove":
        assert world.platform.specs == {}
    else:
        assert [other.id != worker.id for other in world.workers] == [True]


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_phases_take_some_time_or_none(seconds):
    with pytest.raises(InputError, match="is no time"):
        ColdStart(pull_s=seconds)
    with pytest.raises(InputError, match="is no time"):
        ColdStart(load_s=seconds)


# ---------------------------------------------------------------------- machines


def test_workers_without_a_machine_are_throttled_and_start_when_machines_come_back():
    world = World(workers=WorkerBounds(0, 3), scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    world.platform.set_capacity(world.now, "tool", 1)
    for _ in range(3):
        world.submit()
    assert len(world.effects(StartWorker)) == 1
    assert world.health("workers") == {"initializing": 1, "throttled": 2}
    world.platform.set_capacity(world.now, "tool", 2)
    assert len(world.effects(StartWorker)) == 1
    assert world.health("workers") == {"initializing": 2, "throttled": 1}
    world.platform.set_capacity(world.now, "tool", None)
    assert world.health("workers") == {"initializing": 3}


def test_changes_are_effects():
    world = World(workers=WorkerBounds(2, 3))
    world.effects()
    world.platform.set_capacity(world.now, "tool", 2)
    assert world.effects(CapacityChanged) == []
    world.exit(world.workers[0], 0)
    world.platform.set_capacity(world.now, "tool", 1)
    world.pass_time(60)
    assert world.effects(CapacityChanged) == [CapacityChanged("tool", 1, 1)]


def test_nobody_is_throttled_for_jobs_that_are_gone():
    world = World()
    world.platform.set_capacity(world.now, "tool", 0)
    jobs = [world.submit() for _ in range(3)]
    assert world.health("workers") == {"throttled": 1}
    for job in jobs:
        world.platform.cancel(world.now, "tool", job.id)
    assert world.health("workers") == {}
    world.submit(ttl_ms=10_000)
    assert world.health("workers") == {"throttled": 1}
    world.pass_time(10)
    assert world.health("workers") == {}


def test_the_queue_delay_scaler_wants_one_worker_more_and_not_more_and_more():
    world = World(workers=WorkerBounds(0, 5))
    worker, _ = world.running_job()
    world.platform.set_capacity(world.now, "tool", 1)
    for _ in range(4):
        world.submit()
    world.pass_time(60)
    assert world.health("workers")["throttled"] == 1
    assert world.workers == (worker,)


def test_fewer_machines_take_no_worker_away():
    world = World(workers=WorkerBounds(2, 2))
    for worker in world.workers:
        world.take(worker)
    world.platform.set_capacity(world.now, "tool", 0)
    world.pass_time(100)
    assert world.health("workers") == {"idle": 2, "ready": 2}
    world.exit(world.workers[0], 0)
    assert world.health("workers") == {"idle": 1, "ready": 1, "throttled": 1}


def test_a_machine_is_free_once_the_process_on_it_is_gone():
    """Also on a reload: the new worker comes up when the old one has left."""
    world = World(workers=WorkerBounds(1, 1))
    world.platform.set_capacity(world.now, "tool", 1)
    (old,) = world.workers
    world.take(old)
    world.platform.replace_endpoint(world.now, world.spec)
    assert world.workers == (old,)
    assert world.health("workers") == {"throttled": 1}
    world.exit(old, 0)
    assert [worker.id != old.id for worker in world.workers] == [True]
    assert world.health("workers") == {"initializing": 1}


def test_the_capacity_may_be_set_before_the_endpoint_and_outlives_its_replacement():
    world = World()
    world.platform.set_capacity(world.now, "other", 0)
    world.platform.add_endpoint(world.now, make_spec("other", workers=WorkerBounds(1, 1)))
    assert world.platform.health("other")["workers"]["throttled"] == 1
    world.platform.replace_endpoint(world.now, make_spec("other", workers=WorkerBounds(2, 2)))
    assert world.platform.health("other")["workers"]["throttled"] == 2
    world.platform.remove_endpoint(world.now, "other")


def test_a_capacity_is_a_number_of_machines():
    world = World()
    with pytest.raises(InputError, match="capacity=-1"):
        world.platform.set_capacity(world.now, "tool", -1)


# ---------------------------------------------------------------------- timeouts, and starts that come to nothing


def test_a_worker_that_never_asks_for_work_is_killed_after_seven_minutes_and_fails_the_jobs():
    world = World(defaults=PlatformDefaults(failed_starts=1))
    job = world.submit()
    (worker,) = world.workers
    world.effects()
    world.pass_time(419)
    assert world.effects(KillWorker) == []
    world.pass_time(1)
    (kill,) = world.effects(KillWorker)
    assert kill.worker_id == worker.id
    assert job.status is JobStatus.IN_QUEUE
    world.exit(worker, -9, "loading shard 3 of 80")
    report = report_of(job)
    assert report.code == "worker_start_failed"
    assert "it was not ready 420 s after its start (see RUNPOD_INIT_TIMEOUT)" in report.message
    assert report.details["log_tail"] == ["loading shard 3 of 80"]


def test_a_start_that_took_too_long_counts_and_delays_the_next_one():
    world = World()
    job = world.submit()
    for _ in range(DEFAULTS.failed_starts):
        (worker,) = world.workers
        world.pass_time(420)
        world.exit(worker, -9)
        world.pass_time(DEFAULTS.respawn_delay * 4)
    assert job.status is JobStatus.FAILED
    assert report_of(job).details["failed_starts"] == DEFAULTS.failed_starts


def test_the_endpoint_may_have_an_init_timeout_of_its_own():
    world = World(env={"RUNPOD_INIT_TIMEOUT": "900"})
    world.submit()
    world.effects()
    world.pass_time(899)
    assert world.effects(KillWorker) == []
    world.pass_time(1)
    assert "900 s" in world.effects(KillWorker)[0].reason


def test_the_phases_before_the_process_do_not_count_for_the_init_timeout():
    world = World()
    world.platform.set_cold_start("tool", ColdStart(pull_s=1000))
    world.submit()
    world.pass_time(1419)
    assert world.effects(KillWorker) == []
    world.pass_time(1)
    assert len(world.effects(KillWorker)) == 1


@pytest.mark.parametrize("value", ["soon", "0", "-5", "inf", "nan", ""])
def test_an_init_timeout_that_is_none_is_said_when_the_endpoint_is_added(value):
    with pytest.raises(InputError, match=r"RUNPOD_INIT_TIMEOUT=.* of endpoint 'tool' is no number of seconds"):
        World(env={"RUNPOD_INIT_TIMEOUT": value})


def test_workers_that_cannot_set_themselves_up_do_not_cost_a_start_for_each_waiting_job():
    """A flashkit worker takes one job to fail it with the reason, then exits: that is a failed start as well."""
    world = World(workers=WorkerBounds(0, 1))
    jobs = [world.submit() for _ in range(10)]
    starts = 0
    while not all(job.status.is_final for job in jobs):
        starts += len(world.effects(StartWorker))
        (worker,) = world.workers
        (job,) = world.take(worker)
        world.finish(worker, job, error="no GPU")
        world.exit(worker, 1, "no GPU")
        world.pass_time(30)
    assert starts == DEFAULTS.failed_starts
    assert [job.error for job in jobs[:3]] == ["no GPU"] * 3
    assert {report_of(job).code for job in jobs[3:]} == {"worker_start_failed"}
    assert "before they had done anything well" in report_of(jobs[-1]).message


def test_a_worker_that_dies_of_a_job_is_no_failed_start():
    """It is held against that job: the others in the queue have done nothing."""
    world = World(workers=WorkerBounds(0, 1))
    poison, *others = [world.submit() for _ in range(4)]
    for _ in range(DEFAULTS.max_attempts):
        (worker,) = world.workers
        assert world.take(worker) == [poison]
        world.exit(worker, -9)
    assert poison.status is JobStatus.FAILED
    assert {job.status for job in others} == {JobStatus.IN_QUEUE}


def test_a_success_ends_the_row_of_failed_starts():
    world = World(workers=WorkerBounds(0, 1))
    for _ in range(5):
        job = world.submit()
        (worker,) = world.workers
        world.take(worker)
        world.finish(worker, job, output=1)
        world.exit(worker, 1)
    for _ in range(DEFAULTS.failed_starts - 1):
        job = world.submit()
        world.exit(world.workers[0], 1)
        world.pass_time(30)
    assert job.status is JobStatus.IN_QUEUE


# ---------------------------------------------------------------------- processes take real time


def test_a_clock_that_runs_fast_gives_real_processes_their_time():
    world = World()
    world.platform.set_pace(100)
    worker, job = world.running_job()
    world.pass_time(50)
    world.take(worker, busy=False)  # it says it has no job: within a second the result may still come
    world.pass_time(99)
    assert job.status is JobStatus.IN_PROGRESS
    world.pass_time(1)
    assert job.status is JobStatus.FAILED
    world.platform.replace_endpoint(world.now, world.spec)
    world.pass_time(DEFAULTS.drain_grace * 100 - 1)
    assert world.effects(KillWorker) == []
    world.pass_time(1)
    assert len(world.effects(KillWorker)) == 1


def test_a_slow_clock_does_not_shorten_a_grace():
    world = World()
    world.platform.set_pace(0)
    worker, _ = world.running_job()
    world.platform.reclaim_worker(world.now, worker.id)
    assert worker.exit_due_at == world.now + DEFAULTS.reclaim_grace
