"""Advice on a platform, from its own samples."""

from __future__ import annotations

import pytest

from flashkit.cli.advising import AdviceTeller
from flashkit.emulator.adviser import Adviser
from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.reports import Reports
from flashkit.telemetry.advice import Advice
from tests.emulator.test_metrics import World as PlatformWorld
from tests.emulator.test_reports import Report


class World(PlatformWorld):
    def __init__(self):
        super().__init__()
        self.reports = Reports(lambda: tuple(self.platform.specs), clock=lambda: self.now)
        self.adviser = Adviser(self.platform, self.metrics, self.reports, clock=lambda: self.now)

    def pass_seconds(self, seconds, *, jobs_each=0, ended_each=0):
        for second in range(seconds):
            for _ in range(jobs_each):
                self.platform.submit(self.now, "e", JobRequest(input=1), sync=False)
            for number in range(ended_each):
                self.end(f"{self.now}-{second}-{number}")
            self.now += 1
            self.metrics.sample()


@pytest.fixture
def world():
    return World()


def test_a_queue_that_grows_is_seen_in_the_samples(world):
    for worker_id in ("a", "b", "c"):
        world.tell(WorkerEvent("e", worker_id, "ready"))
    world.pass_seconds(30, jobs_each=1)
    assert world.adviser.current() == []
    world.pass_seconds(60, jobs_each=1, ended_each=1)
    [advice] = world.adviser.current()
    assert (advice.topic, advice.endpoint) == ("queue_growing", "e")


def test_the_situation_is_that_of_the_last_minutes(world):
    world.tell(WorkerEvent("e", "old", "starting"))
    world.now += 2
    world.tell(WorkerEvent("e", "old", "ready"))
    world.pass_seconds(310, ended_each=1)
    world.tell(WorkerEvent("e", "new", "starting"))
    world.now += 2
    world.tell(WorkerEvent("e", "new", "ready"))
    world.reports.take(Report("e").gauge("flashkit.engine.kv_cache.usage", 0.5).request)
    [situation] = world.adviser.situations()
    assert situation.cold_starts == 1
    assert situation.jobs == len(situation.moments) == 298
    assert situation.moments[-1].idle_workers == 1
    assert situation.kv_cache_usage == 0.5
    assert situation.usd_per_worker_hour == pytest.approx(0.00076 * 3600)
    assert (situation.kind, situation.min_workers, situation.max_workers) == ("gpu", 1, 3)


def test_advice_is_worked_out_every_few_seconds_at_most(world):
    world.tell(WorkerEvent("e", "a", "ready"))
    first = world.adviser.current()
    assert world.adviser.current() is first
    world.now += 6
    assert world.adviser.current() is not first


def test_each_piece_of_advice_is_said_once_in_a_while():
    said, now = [], [0.0]

    def say(message, *, style=""):
        said.append(message)

    teller = AdviceTeller(say, clock=lambda: now[0])
    growing = Advice("queue_growing", "llm", "its queue grew", "raise max")
    idle = Advice("fleet_idle", "llm", "nobody works", "lower max")
    teller.tell([growing])
    teller.tell([growing, idle])
    assert said == ["advice: llm: its queue grew; raise max", "advice: llm: nobody works; lower max"]
    now[0] = 601.0
    teller.tell([growing])
    assert len(said) == 3
