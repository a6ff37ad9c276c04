"""How the platform starts, feeds, distrusts, drains and survives its workers, one behaviour a test."""

from __future__ import annotations

import pytest
from platform_world import DEFAULTS, World, make_spec, report_of

from flashkit.emulator import lifecycle
from flashkit.emulator.platform import (
    DrainWorker,
    KillWorker,
    StartWorker,
    WakeWorker,
    WorkerState,
)
from flashkit.errors import ErrorReport, InputError, JobNotFound
from flashkit.protocol import JobStatus, PlatformDefaults
from flashkit.spec import ScalerType, WorkerBounds

# ---------------------------------------------------------------------- workers that die, drop jobs, cannot start


def test_jobs_of_a_crashed_worker_go_back_to_the_front_in_their_order():
    world = World()
    worker = world.ready_worker()
    jobs = [world.submit(number) for number in range(4)]
    world.take(worker, limit=2)
    world.platform.partial(world.now, "tool", worker.id, jobs[0].id, "unread")
    world.exit(worker, -9)
    assert [job.status for job in jobs] == [JobStatus.IN_QUEUE] * 4
    assert jobs[0].unread.values == []
    (start,) = world.effects(StartWorker)
    (successor,) = world.workers
    assert start.worker_id == successor.id
    assert world.take(successor, limit=4) == jobs
    assert [job.attempt for job in jobs] == [2, 2, 1, 1]
    assert world.health("jobs") == {"inProgress": 4, "retried": 2}


def test_another_worker_is_woken_for_the_job_of_a_crashed_one():
    world = World(workers=WorkerBounds(2, 2))
    worker, job = world.running_job()
    other = world.ready_worker()
    world.exit(worker, -9)
    assert world.effects(WakeWorker) == [WakeWorker(other.id)]
    assert world.take(other) == [job]


def test_results_of_an_attempt_that_was_given_up_are_ignored():
    world = World()
    worker, job = world.running_job()
    world.exit(worker, -9)
    assert not world.finish(worker, job, output="from the grave")
    assert job.status is JobStatus.IN_QUEUE


def test_a_job_whose_workers_always_die_fails_with_their_last_words():
    world = World()
    job = world.submit()
    for attempt in range(1, DEFAULTS.max_attempts + 1):
        (worker,) = world.workers
        assert world.take(worker) == [job]
        world.exit(worker, -11, f"line of attempt {attempt}")
    assert job.status is JobStatus.FAILED
    report = report_of(job)
    assert (report.code, report.type, report.request_id) == ("worker_died", "JobFailed", job.id)
    assert "was killed by SIGSEGV" in report.message
    assert report.details["signal"] == "SIGSEGV"
    assert report.details["attempts"] == DEFAULTS.max_attempts
    assert report.details["log_tail"] == [f"line of attempt {DEFAULTS.max_attempts}"]


def test_a_job_is_not_blamed_for_a_worker_that_the_platform_ended():
    world = World(defaults=PlatformDefaults(max_attempts=1))
    worker, job = world.running_job()
    world.platform.replace_endpoint(world.now, world.spec)
    world.exit(worker, 0)
    assert job.status is JobStatus.IN_QUEUE
    (successor,) = world.workers
    world.take(successor)
    world.exit(successor, 1)
    assert report_of(job).code == "worker_died"


def test_retry_gives_a_job_all_its_attempts_again():
    world = World(defaults=PlatformDefaults(max_attempts=2))
    job = world.submit()
    for status in (JobStatus.IN_QUEUE, JobStatus.FAILED) * 2:
        if job.status is JobStatus.FAILED:
            world.platform.retry(world.now, "tool", job.id)
        (worker,) = world.workers
        assert world.take(worker) == [job]
        world.exit(worker)
        assert job.status is status
    assert job.attempt == 4


def test_a_job_that_its_worker_forgot_fails_soon():
    world = World()
    worker, job = world.running_job()
    world.take(worker, busy=False)
    world.pass_time(lifecycle.DROP_GRACE - 0.01)
    assert job.status is JobStatus.IN_PROGRESS
    world.take(worker, busy=False)  # asking again gives it no more time
    world.pass_time(0.01)
    assert job.status is JobStatus.FAILED
    assert report_of(job).code == "job_dropped"
    assert worker.state is WorkerState.IDLE
    assert world.take(worker) == []
    assert world.submit() in world.take(worker)


@pytest.mark.parametrize("sign_of_life", ["result", "partial", "progress"])
def test_a_job_that_is_heard_of_was_not_dropped(sign_of_life):
    world = World()
    worker, job = world.running_job()
    world.take(worker, busy=False)
    if sign_of_life == "result":
        assert world.finish(worker, job, output=1)
    else:
        assert getattr(world.platform, sign_of_life)(world.now, "tool", worker.id, job.id, 1)
    world.pass_time(10)
    assert job.status is not JobStatus.FAILED


def test_a_job_handed_out_by_this_very_poll_was_not_dropped():
    world = World()
    worker = world.ready_worker()
    job = world.submit()
    assert world.take(worker, busy=False) == [job]
    world.pass_time(10)
    assert job.status is JobStatus.IN_PROGRESS


def test_queued_jobs_fail_when_no_worker_comes_up():
    world = World()
    job = world.submit()
    for number in range(DEFAULTS.failed_starts):
        (worker,) = world.workers
        world.exit(worker, 1, "ImportError: no module named torch", f"start {number}")
        world.pass_time(10 if number < DEFAULTS.failed_starts - 1 else 0)
    assert job.status is JobStatus.FAILED
    report = report_of(job)
    assert report.code == "worker_start_failed"
    assert report.details["failed_starts"] == DEFAULTS.failed_starts
    assert report.details["log_tail"] == ["ImportError: no module named torch", f"start {DEFAULTS.failed_starts - 1}"]


def test_jobs_are_not_given_up_while_another_worker_can_take_them():
    world = World()
    worker, _ = world.running_job()
    job = world.submit()
    for _ in range(DEFAULTS.failed_starts):
        world.pass_time(20)
        new = next(other for other in world.workers if other is not worker)
        world.exit(new, 1)
    assert job.status is JobStatus.IN_QUEUE


def test_failed_starts_are_repeated_with_doubling_delay():
    world = World(workers=WorkerBounds(1, 1))
    world.effects()
    delays = []
    for _ in range(8):
        (worker,) = world.workers
        died_at = world.now
        world.exit(worker, 1)
        assert world.effects(StartWorker) == []
        while not world.effects(StartWorker):
            world.now = world.platform.next_deadline()
            world.platform.tick(world.now)
        delays.append(world.now - died_at)
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    (worker,) = world.workers
    world.take(worker)
    job = world.submit()
    world.take(worker)
    world.exit(worker, 1)
    assert world.effects(StartWorker), "it came up, so its successor starts at once"
    assert job.status is JobStatus.IN_QUEUE


def test_a_worker_that_comes_up_ends_the_row_of_failed_starts():
    world = World(workers=WorkerBounds(1, 1))
    for _ in range(DEFAULTS.failed_starts - 1):
        world.exit(world.workers[0], 1)
        world.pass_time(30)
    (worker,) = world.workers
    world.take(worker)
    world.exit(worker, 0)
    job = world.submit()
    world.exit(world.workers[0], 1)
    assert job.status is JobStatus.IN_QUEUE


def test_with_a_known_problem_one_failed_start_is_enough_and_its_end_starts_anew_at_once():
    world = World(workers=WorkerBounds(0, 1))
    problem = ErrorReport("handler_error", "no module", type="ImportError", where="app.py:1 in <module>")
    world.platform.set_problem(world.now, "tool", problem)
    for _ in range(DEFAULTS.failed_starts + 1):
        job = world.submit()
        world.pass_time(30)
        world.exit(world.workers[0], 1)
        assert job.status is JobStatus.FAILED
        assert "does not import: ImportError: no module" in str(job.error)
    job = world.submit()
    assert world.workers == ()
    world.platform.set_problem(world.now, "tool", None)
    world.exit(world.workers[0], 1)
    assert job.status is JobStatus.IN_QUEUE, "the row of failed starts began anew"


def test_a_worker_that_fails_before_its_first_job_delays_the_next_start():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.take(worker)
    world.effects()
    world.exit(worker, 1)
    assert world.effects(StartWorker) == []
    world.pass_time(DEFAULTS.respawn_delay)
    assert len(world.effects(StartWorker)) == 1


def test_an_unhealthy_worker_gets_no_jobs_and_its_check_explains_the_failed_start():
    world = World(defaults=PlatformDefaults(failed_starts=1))
    job = world.submit()
    (worker,) = world.workers
    world.platform.unhealthy(world.now, "tool", worker.id, "gpu_memory", "RuntimeError: 2 GB free")
    assert worker.state is WorkerState.UNHEALTHY
    assert world.health("workers") == {"unhealthy": 1}
    assert world.take(worker) == []
    world.exit(worker, 1)
    assert "check 'gpu_memory' failed: RuntimeError: 2 GB free" in report_of(job).message


def test_an_unhealthy_worker_that_stays_is_killed():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.platform.unhealthy(world.now, "tool", worker.id, "disk", "full")
    world.pass_time(DEFAULTS.drain_grace)
    assert [kill.worker_id for kill in world.effects(KillWorker)] == [worker.id]


# ---------------------------------------------------------------------- scaling, idling, waking


def test_the_floor_is_started_with_the_endpoint_and_kept():
    world = World(workers=WorkerBounds(2, 3))
    assert len(world.effects(StartWorker)) == 2
    for worker in world.workers:
        world.take(worker)
    world.pass_time(3_600)
    assert world.effects() == []
    world.exit(world.workers[0], 0)
    assert len(world.effects(StartWorker)) == 1


def test_the_first_job_starts_one_worker_and_waits_for_it():
    world = World()
    for number in range(10):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 1
    world.pass_time(60)
    assert world.effects(StartWorker) == []


def test_another_worker_starts_when_the_first_job_has_waited_too_long():
    world = World(scaler_value=4)
    world.running_job()
    world.submit()
    world.pass_time(3.99)
    assert world.effects(StartWorker) == []
    world.pass_time(0.01)
    assert len(world.effects(StartWorker)) == 1


def test_a_new_worker_takes_its_job_before_the_scaler_looks_again():
    world = World()
    world.running_job()
    job = world.submit()
    world.pass_time(30)
    new = world.workers[1]
    world.effects()
    assert world.take(new) == [job]
    assert world.effects(StartWorker) == []


def test_request_count_scaling_starts_as_many_as_the_jobs_need():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=2, workers=WorkerBounds(0, 10))
    for number in range(7):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 4


def test_never_more_workers_than_the_maximum():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1, workers=WorkerBounds(0, 3))
    for number in range(50):
        world.submit(number)
    assert len(world.effects(StartWorker)) == 3


def test_low_priority_jobs_start_no_worker_but_are_worked_off():
    world = World()
    low = world.submit("low", low_priority=True)
    world.pass_time(60)
    assert world.effects(StartWorker) == []
    high = world.submit("high")
    (worker,) = world.workers
    assert world.take(worker, limit=2) == [low, high]


def test_an_idle_worker_above_the_floor_leaves_after_its_idle_timeout():
    world = World(idle_timeout=5)
    worker, job = world.running_job()
    world.pass_time(60)
    world.finish(worker, job, output=1)
    world.take(worker)
    world.pass_time(4.99)
    assert world.effects(DrainWorker) == []
    world.pass_time(0.01)
    assert world.effects(DrainWorker) == [DrainWorker("tool", worker.id)]
    assert worker.state is WorkerState.DRAINING
    job = world.submit()
    assert world.take(worker) == [], "it was told to leave"
    assert len(world.effects(StartWorker)) == 1
    world.exit(worker, 0)
    assert job.status is JobStatus.IN_QUEUE


def test_an_idle_worker_that_was_kept_for_the_floor_may_leave_when_another_has_come():
    world = World(workers=WorkerBounds(1, 2), idle_timeout=5, scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    (first,) = world.workers
    world.take(first)
    world.pass_time(60)
    world.submit(1), world.submit(2)
    second = world.workers[1]
    assert len(world.take(second, limit=2)) == 2
    world.pass_time(5)
    assert world.effects(DrainWorker) == [DrainWorker("tool", first.id)]


def test_a_drained_worker_that_stays_is_killed_after_the_grace():
    world = World()
    worker, job = world.running_job()
    world.finish(worker, job, output=1, stopPod=True)
    assert world.effects(DrainWorker) == [DrainWorker("tool", worker.id)]
    world.pass_time(DEFAULTS.drain_grace)
    assert [kill.worker_id for kill in world.effects(KillWorker)] == [worker.id]


def test_a_worker_that_asks_to_be_replaced_finishes_its_other_jobs():
    world = World(workers=WorkerBounds(1, 1))
    (worker,) = world.workers
    world.take(worker, limit=2)
    one, two, three = (world.submit(number) for number in range(3))
    world.take(worker, limit=2)
    world.effects()
    world.finish(worker, one, output=1, stopPod=True)
    assert len(world.effects(StartWorker)) == 1
    assert world.take(worker) == []
    assert world.finish(worker, two, output=2)
    assert world.take(world.workers[1]) == [three]


def test_workers_that_do_not_exit_do_not_pile_up():
    world = World(workers=WorkerBounds(1, 1))
    for number in range(5):
        job = world.submit(number)
        worker = world.workers[-1]
        if world.take(worker):
            world.finish(worker, job, output=1, stopPod=True)
    assert len(world.workers) == 2


def test_one_worker_is_woken_for_each_job_and_idle_ones_first():
    world = World(workers=WorkerBounds(3, 3))
    busy, *idle = world.workers
    world.submit("for the busy one")
    world.take(busy, limit=2, busy=False)
    for worker in (*idle, busy):
        world.take(worker)
    world.platform.effects()
    woken = []
    for number in range(5):
        world.submit(number)
        woken.append([wake.worker_id for wake in world.effects(WakeWorker)])
    assert woken == [[idle[1].id], [idle[0].id], [busy.id], [], []]


def test_a_woken_worker_that_does_not_come_is_passed_over():
    world = World(workers=WorkerBounds(2, 2))
    for worker in world.workers:
        world.take(worker)
    first, second = world.workers
    world.platform.effects()
    world.submit()
    assert world.effects(WakeWorker) == [WakeWorker(second.id)]
    world.pass_time(lifecycle.WAKE_AGAIN_DELAY)
    assert world.effects(WakeWorker) == [WakeWorker(first.id)]


def test_a_worker_that_was_just_woken_for_a_job_is_not_drained_as_idle():
    world = World(idle_timeout=5)
    worker = world.ready_worker()
    world.pass_time(4.99)
    job = world.submit()
    world.pass_time(0.02)
    assert world.effects(DrainWorker) == []
    assert world.take(worker) == [job]


# ---------------------------------------------------------------------- endpoints that change


def test_a_reload_keeps_jobs_and_replaces_workers():
    world = World(workers=WorkerBounds(1, 3))
    worker, running = world.running_job()
    world.effects()
    waiting = world.submit()
    world.platform.replace_endpoint(world.now, make_spec(workers=WorkerBounds(2, 3)))
    assert {drain.worker_id for drain in world.effects(DrainWorker)} >= {worker.id}
    successor = next(other for other in world.workers if not other.is_leaving)
    assert world.take(worker) == []
    assert world.take(successor) == [waiting]
    assert world.finish(worker, running, output=1), "the old worker finishes what it has"


def test_a_removed_endpoint_cancels_its_jobs_and_is_known_no_more():
    world = World(workers=WorkerBounds(1, 3))
    worker, running = world.running_job()
    waiting = world.submit()
    world.platform.remove_endpoint(world.now, "tool")
    assert {running.status, waiting.status} == {JobStatus.CANCELLED}
    assert world.stop_signals(worker) == [running.id]
    for call in (world.submit, lambda: world.platform.health("tool"), lambda: world.workers):
        with pytest.raises(InputError):
            call()
    world.pass_time(DEFAULTS.drain_grace)
    assert worker.id in {kill.worker_id for kill in world.effects(KillWorker)}
    world.exit(worker, -9)
    assert world.platform.specs == {}


def test_a_removed_endpoint_leaves_nothing_behind():
    world = World(workers=WorkerBounds(2, 3))
    workers = world.workers
    for worker in workers:
        world.take(worker)
    world.submit()
    world.platform.remove_endpoint(world.now, "tool")
    for worker in workers:
        world.exit(worker, 0)
    assert world.platform.next_deadline() is None
    world.platform.effects()
    world.pass_time(100)
    assert world.platform.effects() == []


def test_an_endpoint_can_come_back_while_its_old_workers_leave():
    world = World()
    old, job = world.running_job()
    world.platform.remove_endpoint(world.now, "tool")
    world.platform.add_endpoint(world.now, world.spec)
    assert world.platform.specs == {"tool": world.spec}
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "tool", job.id)
    new_job = world.submit()
    assert world.take(old) == []
    assert not world.finish(old, job, output="late")
    assert world.take(world.workers[-1]) == [new_job]


def test_endpoints_do_not_touch_each_other():
    world = World()
    world.platform.add_endpoint(world.now, make_spec("other"))
    job = world.submit()
    (worker,) = world.workers
    with pytest.raises(JobNotFound):
        world.platform.job(world.now, "other", job.id)
    assert world.platform.take(world.now, "other", worker.id, limit=1, job_in_progress=False) == []
    assert world.platform.workers("other") == ()


def test_worker_ids_differ_between_platforms():
    """A worker left over from another run must not be taken for one of ours."""
    ids = {World(workers=WorkerBounds(1, 1)).workers[0].id for _ in range(20)}
    assert len(ids) == 20


def test_health_counts_what_workers_do():
    world = World(workers=WorkerBounds(3, 3))
    running, idle, _ = world.workers
    world.take(running)
    world.submit()
    world.take(running)
    world.take(idle)
    assert world.platform.health("tool")["workers"] == {
        "idle": 1,
        "initializing": 1,
        "ready": 2,
        "running": 1,
        "throttled": 0,
        "unhealthy": 0,
    }
