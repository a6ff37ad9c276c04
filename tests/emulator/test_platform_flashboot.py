"""FlashBoot, spot reclaim, hand-outs that never arrived, and requests: the rules, without processes."""

from __future__ import annotations

import pytest

from flashkit.emulator.platform import (
    DrainWorker,
    FreezeWorker,
    KillWorker,
    Platform,
    StartWorker,
    ThawWorker,
    WorkerState,
)
from flashkit.errors import InputError
from flashkit.protocol import JobStatus
from flashkit.spec import ScalerType, WorkerBounds
from tests.emulator.platform_world import DEFAULTS, World, make_spec


class FlashBootWorld(World):
    """A world whose platform has FlashBoot."""

    def __init__(self, *, has_flashboot: bool = True, **changes):
        super().__init__(**changes)
        self.platform = Platform(DEFAULTS, has_flashboot=has_flashboot)
        self.platform.add_endpoint(self.now, self.spec)

    def frozen_worker(self):
        worker = self.ready_worker()
        self.pass_time(self.spec.idle_timeout)
        assert self.effects() == [FreezeWorker("tool", worker.id)]
        return worker


def test_an_idle_worker_is_frozen_and_counts_nowhere():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    assert worker.state is WorkerState.FROZEN
    assert world.health("workers") == {}
    assert world.workers == (worker,)


def test_a_job_thaws_it_and_its_cold_start_begins_with_the_thaw():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    world.pass_time(100)
    job = world.submit()
    assert world.effects() == [ThawWorker("tool", worker.id)]
    assert (worker.state, worker.started_at) == (WorkerState.INITIALIZING, world.now)
    assert world.health("workers") == {"initializing": 1}
    assert world.take(worker) == [job]


def test_the_latest_one_is_thawed_first_and_others_before_any_start():
    world = FlashBootWorld(workers=WorkerBounds(0, 3), scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    first, second = world.ready_worker(), world.ready_worker()
    for worker in (first, second):
        world.platform.freeze_worker(world.now, worker.id)
    world.effects()
    for _ in range(3):
        world.submit()
    effects = world.effects((ThawWorker, StartWorker))
    assert [type(effect) for effect in effects] == [ThawWorker, ThawWorker, StartWorker]
    assert [effect.worker_id for effect in effects[:2]] == [second.id, first.id]


def test_only_endpoints_that_want_it_have_it_and_only_where_the_platform_has():
    for world in (FlashBootWorld(flashboot=False), FlashBootWorld(has_flashboot=False)):
        worker = world.ready_worker()
        world.pass_time(world.spec.idle_timeout)
        assert world.effects() == [DrainWorker("tool", worker.id)]


def test_a_worker_of_the_floor_is_not_frozen():
    world = FlashBootWorld(workers=WorkerBounds(1, 1))
    world.take(world.workers[0])
    world.effects()
    world.pass_time(3_600)
    assert world.effects() == []


def test_it_is_kept_for_its_time_and_no_longer():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    world.pass_time(DEFAULTS.frozen_keep - 1)
    assert world.effects() == []
    world.pass_time(1)
    assert [effect.worker_id for effect in world.effects(KillWorker)] == [worker.id]
    world.exit(worker, -9)
    assert world.workers == ()


@pytest.mark.parametrize("end", ["replace", "remove", "reclaim", "cool"])
def test_it_is_killed_when_it_is_of_no_use_any_more(end):
    world = FlashBootWorld()
    worker = world.frozen_worker()
    match end:
        case "replace":
            world.platform.replace_endpoint(world.now, world.spec)
        case "remove":
            world.platform.remove_endpoint(world.now, "tool")
        case "reclaim":
            world.platform.reclaim_worker(world.now, worker.id)
        case "cool":
            world.platform.kill_workers(world.now, "tool")
    effects = world.effects()
    assert [type(effect) for effect in effects] == [KillWorker], "SIGTERM would not reach it"
    world.platform.kill_worker(world.now, worker.id)
    assert world.effects() == [], "once is enough"


def test_one_that_dies_while_it_is_frozen_is_no_failed_start():
    world = FlashBootWorld()
    world.exit(world.frozen_worker(), -9)
    world.submit()
    assert len(world.effects(StartWorker)) == 1


def test_one_that_does_not_come_back_after_the_thaw_is_a_failed_start():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    job = world.submit()
    world.exit(worker, 1)
    assert world.effects(StartWorker) == []
    world.pass_time(DEFAULTS.respawn_delay)
    assert len(world.effects(StartWorker)) == 1
    assert job.status is JobStatus.IN_QUEUE


def test_a_thaw_that_hangs_runs_into_the_init_timeout():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    world.submit()
    world.pass_time(DEFAULTS.init_timeout)
    assert worker.id in [effect.worker_id for effect in world.effects(KillWorker)]


def test_a_thaw_needs_a_machine():
    world = FlashBootWorld()
    worker = world.frozen_worker()
    world.platform.set_capacity(world.now, "tool", 0)
    world.submit()
    assert world.effects(ThawWorker) == []
    assert world.health("workers") == {"throttled": 1}
    with pytest.raises(InputError, match="there is no machine"):
        world.platform.thaw_worker(world.now, worker.id)
    world.platform.set_capacity(world.now, "tool", 1)
    assert world.effects(ThawWorker) == [ThawWorker("tool", worker.id)]


def test_frozen_and_active_workers_together_are_never_more_than_the_maximum():
    world = FlashBootWorld(workers=WorkerBounds(0, 2))
    workers = [world.ready_worker(), world.ready_worker()]
    for worker in workers:
        world.platform.freeze_worker(world.now, worker.id)
    for _ in range(9):
        world.submit()
    world.pass_time(60)
    assert set(world.workers) == set(workers)


# ---------------------------------------------------------------------- what takes real time


def test_a_worker_is_changing_while_its_process_has_something_to_do():
    world = FlashBootWorld()
    job = world.submit()
    (worker,) = world.workers
    assert worker.is_changing, "it comes up"
    world.take(worker)
    assert not worker.is_changing
    world.take(worker, busy=False)
    assert worker.is_changing, "a result may be under way"
    world.platform.partial(world.now, "tool", worker.id, job.id, 1)
    assert not worker.is_changing
    world.platform.cancel(world.now, "tool", job.id)
    assert worker.is_changing, "it stops the job"
    world.stop_signals(worker)
    world.take(worker, busy=False)
    assert not worker.is_changing
    world.platform.freeze_worker(world.now, worker.id)
    assert not worker.is_changing
    world.platform.thaw_worker(world.now, worker.id)
    assert worker.is_changing
    world.platform.kill_worker(world.now, worker.id)
    assert worker.is_changing, "until its end is reported"


# ---------------------------------------------------------------------- spot reclaim


def test_a_reclaimed_worker_has_a_notice_and_a_grace_and_its_job_is_not_blamed():
    world = World()
    worker, job = world.running_job()
    world.platform.reclaim_worker(world.now, worker.id, grace_s=7)
    assert world.effects(DrainWorker) == [DrainWorker("tool", worker.id, is_reclaimed=True)]
    world.pass_time(7)
    assert [effect.worker_id for effect in world.effects(KillWorker)] == [worker.id]
    world.exit(worker, -9)
    assert (job.status, job.attempt_limit) == (JobStatus.IN_QUEUE, DEFAULTS.max_attempts + 1)


def test_a_reclaim_hurries_a_worker_that_is_leaving_and_never_delays_it():
    world = World()
    worker, _ = world.running_job()
    world.platform.replace_endpoint(world.now, world.spec)
    world.platform.reclaim_worker(world.now, worker.id, grace_s=2)
    assert worker.exit_due_at == world.now + 2
    world.platform.reclaim_worker(world.now, worker.id, grace_s=20)
    assert worker.exit_due_at == world.now + 2


def test_a_killed_workers_job_goes_back_without_blame():
    world = World()
    worker, job = world.running_job()
    world.platform.kill_worker(world.now, worker.id)
    world.exit(worker, -9)
    assert (job.status, job.attempt_limit) == (JobStatus.IN_QUEUE, DEFAULTS.max_attempts + 1)


def test_workers_that_are_not_there_are_named():
    world = World()
    for change in (
        world.platform.kill_worker,
        world.platform.reclaim_worker,
        world.platform.freeze_worker,
        world.platform.thaw_worker,
    ):
        with pytest.raises(InputError, match="there is no worker 'w9'"):
            change(world.now, "w9")


# ---------------------------------------------------------------------- hand-outs that never arrived


def test_a_job_that_never_arrived_is_handed_out_again_at_once_and_without_blame():
    world = World()
    worker, job = world.running_job()
    other = world.submit()
    assert world.platform.put_back(world.now, "tool", worker.id, job.id, attempt=1)
    assert (job.status, job.started_at, job.attempt_limit) == (JobStatus.IN_QUEUE, None, DEFAULTS.max_attempts + 1)
    assert world.take(worker, limit=2) == [job, other]
    assert world.health("jobs") == {"inProgress": 2}


@pytest.mark.parametrize("sign", ["progress", "partial", "result", "attempt", "worker"])
def test_a_job_that_did_arrive_stays_where_it_is(sign):
    world = World()
    worker, job = world.running_job()
    attempt, worker_id = 1, worker.id
    match sign:
        case "progress":
            world.platform.progress(world.now, "tool", worker.id, job.id, 1)
        case "partial":
            world.platform.partial(world.now, "tool", worker.id, job.id, 1)
        case "result":
            world.finish(worker, job, output=1)
        case "attempt":
            attempt = 0
        case "worker":
            worker_id = "stranger"
    status = job.status
    assert not world.platform.put_back(world.now, "tool", worker_id, job.id, attempt=attempt)
    assert job.status is status


# ---------------------------------------------------------------------- requests of load-balanced endpoints


def ready(world):
    (worker,) = (worker for worker in world.workers if worker.state is WorkerState.INITIALIZING)
    assert world.platform.worker_ready(world.now, "tool", worker.id)
    assert not world.platform.worker_ready(world.now, "tool", worker.id)
    return worker


def test_a_waiting_request_starts_a_worker_and_a_running_one_keeps_it_from_idling():
    world = FlashBootWorld()
    world.platform.request_waits(world.now, "tool", "r1")
    assert len(world.effects(StartWorker)) == 1
    worker = ready(world)
    assert world.platform.request_begins(world.now, "tool", worker.id, "r1")
    assert worker.state is WorkerState.RUNNING
    world.pass_time(3_600)
    assert world.effects() == []
    world.platform.request_ends(world.now, "tool", worker.id, "r1")
    world.platform.request_ends(world.now, "tool", worker.id, "r1")
    assert (worker.state, worker.jobs_done) == (WorkerState.IDLE, 1)
    world.pass_time(world.spec.idle_timeout)
    assert world.effects() == [FreezeWorker("tool", worker.id)]
    assert not world.platform.request_begins(world.now, "tool", worker.id, "r2"), "it is frozen"
    world.platform.request_waits(world.now, "tool", "r2")
    assert world.effects() == [ThawWorker("tool", worker.id)]


def test_the_request_count_scaler_counts_requests():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=2, workers=WorkerBounds(0, 5))
    for number in range(7):
        world.platform.request_waits(world.now, "tool", f"r{number}")
    assert len(world.effects(StartWorker)) == 4


def test_nobody_is_throttled_for_requests_that_gave_up():
    world = World()
    world.platform.set_capacity(world.now, "tool", 0)
    world.platform.request_waits(world.now, "tool", "r1")
    assert world.health("workers") == {"throttled": 1}
    world.platform.request_leaves(world.now, "tool", "r1")
    world.platform.request_leaves(world.now, "tool", "r1")
    world.platform.request_leaves(world.now, "no-such-endpoint", "r1")
    assert world.health("workers") == {}


def test_requests_end_with_their_worker():
    world = World(scaler_type=ScalerType.REQUEST_COUNT, scaler_value=1)
    world.platform.request_waits(world.now, "tool", "r1")
    worker = ready(world)
    world.platform.request_begins(world.now, "tool", worker.id, "r1")
    world.exit(worker, -9)
    world.platform.request_ends(world.now, "tool", worker.id, "r1")
    world.platform.request_waits(world.now, "tool", "r2")
    assert len(world.workers) == 1, "the load is one request, not two"


def test_a_request_needs_an_endpoint():
    world = World()
    with pytest.raises(InputError, match="there is no endpoint"):
        world.platform.request_waits(world.now, "tol", "r1")
    world.platform.add_endpoint(world.now, make_spec("tol"))
