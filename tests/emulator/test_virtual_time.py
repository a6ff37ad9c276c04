"""A platform whose clock is moved on, sped up, or stands still, and runs that repeat."""

from __future__ import annotations

import asyncio
import time

import pytest

from flashkit.emulator.clock import Clock
from flashkit.emulator.events import CapacityEvent, ClockEvent
from flashkit.emulator.platform import ColdStart, JobRequest, WorkerState
from flashkit.errors import ErrorReport
from flashkit.protocol import PlatformDefaults

HOUR = 3600.0


@pytest.fixture
def clock():
    return Clock(speed=0, start=1000.0)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def start(start_emulator, clock, seen):
    async def start(*endpoints, **options):
        return await start_emulator(*endpoints, **{"clock": clock, "on_event": seen.append, **options})

    return start


async def test_a_job_that_nobody_takes_expires_after_a_day_in_a_moment(start, make_endpoint, http):
    emulator = await start(make_endpoint("actions", "actions"), capacity=0)
    url = f"{emulator.url}/v2/actions"
    job_id = (await http("POST", f"{url}/run", json={"input": {}})).body["id"]
    await emulator.clock.advance(24 * HOUR - 1)
    assert (await http("GET", f"{url}/status/{job_id}")).body["status"] == "IN_QUEUE"
    await emulator.clock.advance(1)
    assert (await http("GET", f"{url}/status/{job_id}")).status == 404
    assert emulator.platform.health("actions")["jobs"]["failed"] == 1


async def test_a_running_job_runs_into_its_timeout_when_the_clock_is_moved(start, make_endpoint, wait_until, seen):
    """`advance` moves everything. Its worker, told to stop, has real time to do so: it goes on with the next job."""
    emulator = await start(make_endpoint("actions", "actions"))
    job = emulator.submit("actions", JobRequest({"do": "sleep", "seconds": 600}))
    await wait_until(lambda: job.status == "IN_PROGRESS", seconds=60)
    await wait_until(lambda: any(getattr(event, "text", "") == "Started." for event in seen), seconds=60)
    await emulator.clock.advance(599)
    assert job.status == "IN_PROGRESS"
    await emulator.clock.advance(1)
    assert job.status == "TIMED_OUT"
    assert job.execution_ms == 600_000
    after = emulator.submit("actions", JobRequest({"do": "echo", "value": 1}))
    await wait_until(lambda: after.status.is_final, seconds=60)
    assert (after.output, after.worker_id) == (1, job.worker_id)


async def test_workers_and_jobs_can_be_waited_for_on_the_way(start, make_endpoint):
    """An hour goes by in one call: the worker comes up, does the job, is idle for ten minutes, and exits."""
    emulator = await start(make_endpoint("actions", "actions"))
    job = emulator.submit("actions", JobRequest({"do": "echo", "value": 1}))
    await emulator.clock.advance(HOUR, patience=60, spares_jobs=True)
    assert job.status == "COMPLETED"
    assert emulator.platform.workers("actions") == ()


async def test_impatience_leaves_a_starting_worker_to_its_init_timeout(start, make_endpoint, wait_until):
    emulator = await start(make_endpoint("silent", "silent"), defaults=PlatformDefaults(failed_starts=1))
    job = emulator.submit("silent", JobRequest({}))
    await emulator.clock.advance(420, patience=0.1)
    await wait_until(lambda: job.status.is_final)
    report = ErrorReport.from_job_error(job.error)
    assert report.code == "worker_start_failed"
    assert "it was not ready 420 s after its start (see RUNPOD_INIT_TIMEOUT)" in report.message
    assert emulator.platform.health("silent")["workers"]["initializing"] == 0


async def test_phases_of_a_cold_start_follow_the_clock(start, make_endpoint):
    emulator = await start(make_endpoint("actions", "actions"), cold_start=ColdStart(pull_s=120, load_s=60))
    emulator.submit("actions", JobRequest({}))
    (worker,) = emulator.platform.workers("actions")
    seen = []
    for _ in range(3):
        seen.append((worker.state, worker.phase))
        await emulator.clock.advance(60)
    assert seen == [
        (WorkerState.INITIALIZING, "pulling the image"),
        (WorkerState.INITIALIZING, "pulling the image"),
        (WorkerState.INITIALIZING, "loading the weights"),
    ]
    assert worker.phase == ""
    assert worker.has_process


async def test_webhooks_are_tried_again_when_the_clock_says_so(start, make_endpoint, unused_tcp_port, caplog):
    """Nobody listens there: three tries, ten seconds apart."""
    emulator = await start(make_endpoint("actions", "actions"), capacity=0)
    hook = f"http://127.0.0.1:{unused_tcp_port}/hook"
    job = emulator.submit("actions", JobRequest({}, webhook=hook))
    emulator.dispatcher.apply(emulator.platform.cancel, "actions", job.id)
    tries = []
    for seconds in (0, 9, 1, 10, HOUR):
        await emulator.clock.advance(seconds)
        tries.append(caplog.text.count("webhook of job"))
    assert tries == [1, 1, 2, 3, 3]


async def test_a_fast_clock_ends_what_time_ends_and_spares_real_processes(start_emulator, make_endpoint, wait_until):
    """At 600 times real time a worker has still its graces: starting takes it some twenty minutes of the clock."""
    clock = Clock(speed=600)
    emulator = await start_emulator(make_endpoint("actions", "actions"), clock=clock)
    job = emulator.submit("actions", JobRequest({"do": "echo", "value": 1}))
    await wait_until(lambda: job.status.is_final, seconds=60)
    assert job.status == "COMPLETED"
    begin = time.monotonic()
    await wait_until(lambda: emulator.platform.workers("actions") == (), seconds=60)  # idle for ten minutes
    assert time.monotonic() - begin < 60


async def test_changes_of_the_clock_and_of_the_capacity_are_told(start, make_endpoint, seen):
    emulator = await start(make_endpoint("actions", "actions", workers=(2, 3)), capacity={"actions": 1})
    assert [event for event in seen if isinstance(event, CapacityEvent)] == [CapacityEvent("actions", 1, 1)]
    assert emulator.platform.health("actions")["workers"]["throttled"] == 1
    emulator.set_capacity("actions", None)
    assert [event for event in seen if isinstance(event, CapacityEvent)][-1] == CapacityEvent("actions", 0, None)
    assert len(emulator.platform.workers("actions")) == 2
    emulator.clock.set_speed(0)
    await emulator.clock.advance(5, patience=0)
    told = [event for event in seen if isinstance(event, ClockEvent)]
    assert [(event.now, event.advanced_s, event.speed) for event in told] == [(1000.0, 0.0, 0), (1005.0, 5, 0)]


async def story(start_emulator, make_endpoint, seed):
    """Return what happened in a run without real processes: what is random comes from the seed."""
    seen = []
    clock = Clock(speed=0, start=0.0)
    emulator = await start_emulator(
        make_endpoint("actions", "actions"), capacity=0, seed=seed, clock=clock, on_event=seen.append
    )
    for n in range(20):
        emulator.submit("actions", JobRequest({"n": n}, ttl_ms=10_000 + emulator.random.randrange(5_000)))
        await clock.advance(emulator.random.random())
    await clock.advance(60)
    return seen


async def test_a_run_repeats_under_its_seed(start_emulator, make_endpoint):
    first = await story(start_emulator, make_endpoint, seed=7)
    assert len(first) > 50
    assert await story(start_emulator, make_endpoint, seed=7) == first
    assert await story(start_emulator, make_endpoint, seed=8) != first
    assert len(set(await asyncio.gather(*(ids(start_emulator, make_endpoint) for _ in range(2))))) == 2


async def ids(start_emulator, make_endpoint):
    emulator = await start_emulator(make_endpoint("actions", "actions"), capacity=0)
    return emulator.submit("actions", JobRequest({})).id
