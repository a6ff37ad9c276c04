"""Requests of load-balanced endpoints as load of the pure platform: who is started for them, and who stays."""

from __future__ import annotations

from platform_world import World

from flashkit.emulator.platform import DrainWorker, StartWorker
from flashkit.spec import ScalerType, WorkerBounds


def balanced_world(**changes):
    options = {"workers": WorkerBounds(0, 4), "scaler_value": 2, "idle_timeout": 5, **changes}
    return World(
        load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT, execution_timeout_ms=330_000, concurrency=8, **options
    )


def begin(world, worker, *requests):
    for request in requests:
        assert world.platform.request_begins(world.now, "tool", worker.id, request)


def end(world, worker, *requests):
    for request in requests:
        world.platform.request_ends(world.now, "tool", worker.id, request)


def ready(world):
    for worker in world.workers:
        world.platform.worker_ready(world.now, "tool", worker.id)
    return list(world.workers)


def world_with_first_worker(**changes):
    world = balanced_world(**changes)
    world.platform.request_waits(world.now, "tool", "r1")
    [first] = ready(world)
    begin(world, first, "r1")
    world.effects()
    return world, first


def test_requests_in_one_worker_start_others_though_none_waits():
    world, first = world_with_first_worker()
    begin(world, first, "r2")
    assert world.effects(StartWorker) == []
    begin(world, first, "r3")
    assert len(world.effects(StartWorker)) == 1
    begin(world, first, "r4", "r5")
    assert len(world.effects(StartWorker)) == 1


def test_idle_workers_stay_while_requests_call_for_them_and_go_after_that():
    """One worker has all the long requests: the other must not stop and start again for ever."""
    world, first = world_with_first_worker()
    begin(world, first, "r2", "r3")
    ready(world)
    world.effects()
    world.pass_time(600)
    assert world.effects((StartWorker, DrainWorker)) == []
    end(world, first, "r3")
    world.pass_time(6)
    assert [effect.worker_id != first.id for effect in world.effects(DrainWorker)] == [True]
    end(world, first, "r1", "r2")
    world.pass_time(6)
    assert [effect.worker_id for effect in world.effects(DrainWorker)] == [first.id]


def test_the_death_of_a_worker_lets_the_idle_ones_go():
    world, first = world_with_first_worker()
    begin(world, first, "r2", "r3")
    second = ready(world)[1]
    world.effects()
    world.exit(first, -9)
    world.pass_time(6)
    assert [effect.worker_id for effect in world.effects(DrainWorker)] == [second.id]


def test_a_request_that_gives_up_lets_the_idle_ones_go():
    world = balanced_world()
    world.platform.request_waits(world.now, "tool", "r1")
    [first] = ready(world)
    world.effects()
    world.pass_time(60)
    assert world.effects(DrainWorker) == []
    world.platform.request_leaves(world.now, "tool", "r1")
    world.pass_time(6)
    assert [effect.worker_id for effect in world.effects(DrainWorker)] == [first.id]


def test_after_several_failed_starts_those_that_wait_wait_in_vain():
    world = balanced_world()
    world.platform.request_waits(world.now, "tool", "r1")
    assert not world.platform.has_given_up("tool")
    while not world.platform.has_given_up("tool"):
        world.pass_time(60)
        world.exit(world.workers[0], 1)
    assert not world.platform.has_given_up("nobody")
