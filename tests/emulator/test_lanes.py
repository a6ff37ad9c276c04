"""What each worker was doing: exact, but bounded however many jobs there are."""

from __future__ import annotations

import pytest

from flashkit.emulator import lanes as module
from flashkit.emulator.events import JobEvent, RequestEvent, WorkerEvent
from flashkit.emulator.lanes import Lanes
from flashkit.protocol import JobStatus


class World:
    """Lanes, and the number and time of the next event."""

    def __init__(self):
        self.lanes = Lanes()
        self.n = 0
        self.at = 100.0

    def worker(self, what, *, worker_id="w", after=1.0, detail=""):
        self.n, self.at = self.n + 1, self.at + after
        self.lanes.note_worker(self.n, self.at, WorkerEvent("e", worker_id, what, detail))

    def job(self, job_id, status=JobStatus.IN_PROGRESS, *, worker_id="w", after=1.0):
        self.n, self.at = self.n + 1, self.at + after
        self.lanes.note_job(self.n, self.at, JobEvent("e", job_id, status, 1, worker_id, None, None, None, None, 0, 0))

    def states(self, worker_id="w"):
        return [change.state for change in self.lanes.by_worker[worker_id].changes]


@pytest.fixture
def world():
    return World()


def test_a_worker_starts_waits_works_and_ends(world):
    world.worker("initializing")
    world.worker("starting")
    world.worker("ready")
    world.job("j")
    world.job("j", JobStatus.COMPLETED)
    world.worker("draining")
    world.worker("exited", detail="exit code 0")
    assert world.states() == ["initializing", "starting", "idle", "running", "idle", "draining", "exited"]
    lane = world.lanes.by_worker["w"]
    assert lane.is_over
    assert lane.detail == "exit code 0"
    assert not lane.jobs


def test_a_worker_that_goes_from_job_to_job_is_busy_all_the_time(world):
    world.worker("ready")
    for number in range(10_000):
        world.job(f"j{number}", after=0.01)
        world.job(f"j{number}", JobStatus.COMPLETED, after=0.01)
    assert world.states() == ["idle", "running", "idle"]


def test_a_longer_break_is_seen(world):
    world.worker("ready")
    world.job("a")
    world.job("a", JobStatus.COMPLETED)
    world.job("b", after=5)
    assert world.states() == ["idle", "running", "idle", "running"]


def test_a_worker_is_idle_when_its_last_job_is_gone(world):
    world.worker("ready")
    world.job("a")
    world.job("b")
    world.job("a", JobStatus.COMPLETED)
    assert world.states() == ["idle", "running"]
    world.job("b", JobStatus.IN_QUEUE, worker_id=None)
    assert world.states() == ["idle", "running", "idle"]


def request(world, *, seconds, after, worker_id="w"):
    world.n, world.at = world.n + 1, world.at + after
    event = RequestEvent("e", "r", "GET", "/", 200, worker_id, 0, round(seconds * 1000), 1, 0, 0, None)
    world.lanes.note_request(world.n, world.at, event)


def test_requests_to_a_load_balanced_worker_are_work(world):
    world.worker("ready")
    request(world, seconds=2, after=5)
    request(world, seconds=2, after=0.5)  # began while the other ran
    request(world, seconds=1, after=10)
    request(world, seconds=1, after=1, worker_id="no-such")
    assert world.states() == ["idle", "running", "idle", "running", "idle"]
    times = [change.at for change in world.lanes.by_worker["w"].changes]
    assert times == [101.0, 104.0, 106.5, 115.5, 116.5]


def test_frozen_workers_thaw(world):
    for what in ("ready", "frozen", "thawing", "ready"):
        world.worker(what)
    assert world.states() == ["idle", "frozen", "starting", "idle"]


def test_lanes_and_their_changes_are_bounded(world, monkeypatch):
    monkeypatch.setattr(module, "LANE_LIMIT", 10)
    world.worker("ready", worker_id="old")
    world.worker("exited", worker_id="old")
    for number in range(10):
        world.worker("ready", worker_id=f"w{number}")
    assert "old" not in world.lanes.by_worker
    assert len(world.lanes.by_worker) == 10
    for _ in range(500):
        world.job("j", worker_id="w0")
        world.job("j", JobStatus.COMPLETED, worker_id="w0")
    assert len(world.states("w0")) == module.CHANGE_LIMIT
