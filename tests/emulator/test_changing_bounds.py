"""Bounds that change while workers run: `Platform.set_workers`."""

from __future__ import annotations

import pytest

from flashkit.emulator.effects import DrainWorker, FreezeWorker, StartWorker, ThawWorker
from flashkit.emulator.platform import Platform
from flashkit.errors import InputError
from flashkit.spec import WorkerBounds
from tests.emulator.platform_world import DEFAULTS, World, make_spec


def change(world: World, low: int, high: int) -> None:
    world.platform.set_workers(world.now, "tool", WorkerBounds(low, high))


def test_a_higher_floor_starts_what_is_missing_and_replaces_nobody():
    world = World(idle_timeout=10)
    worker = world.ready_worker()
    change(world, 3, 5)
    assert len(world.effects(StartWorker)) == 2
    assert not world.effects(DrainWorker)
    assert worker in world.workers


def test_a_lower_floor_lets_go_of_workers_that_have_been_idle_for_long():
    world = World(workers=WorkerBounds(1, 3), idle_timeout=10)
    world.take(world.workers[0])
    world.pass_time(60)
    assert not world.effects(DrainWorker)
    change(world, 0, 3)
    world.pass_time(0)
    assert len(world.effects(DrainWorker)) == 1


def test_a_lower_floor_leaves_a_worker_the_rest_of_its_idle_time():
    world = World(workers=WorkerBounds(1, 3), idle_timeout=10)
    world.take(world.workers[0])
    world.pass_time(6)
    change(world, 0, 3)
    world.pass_time(3.9)
    assert not world.effects(DrainWorker)
    world.pass_time(0.1)
    assert len(world.effects(DrainWorker)) == 1


def test_a_higher_floor_thaws_a_frozen_worker_first():
    platform = Platform(DEFAULTS, has_flashboot=True)
    platform.add_endpoint(0.0, make_spec(idle_timeout=10, workers=WorkerBounds(1, 3)))
    (worker,) = platform.workers("tool")
    platform.take(0.0, "tool", worker.id, limit=1, job_in_progress=False)
    platform.set_workers(20.0, "tool", WorkerBounds(0, 3))
    platform.tick(20.0)
    assert any(isinstance(effect, FreezeWorker) for effect in platform.effects())
    platform.set_workers(30.0, "tool", WorkerBounds(1, 3))
    (effect,) = platform.effects()
    assert effect == ThawWorker("tool", worker.id)


def test_an_endpoint_that_there_is_not_is_named():
    with pytest.raises(InputError, match="'other'"):
        World().platform.set_workers(0.0, "other", WorkerBounds(0, 1))
