"""FlashBoot and spot reclaim with real worker processes: of the plain SDK, and of flashkit."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path

import psutil
import pytest

from flashkit.emulator.faults import parse_faults
from flashkit.emulator.platform import ColdStart, JobRequest, WorkerState
from flashkit.emulator.supervisor import LocalEndpoint
from flashkit.errors import InputError
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

APPS = Path(__file__).parents[1] / "apps"


def flashkit_endpoint(*, workers=(0, 1), **options):
    """Make an endpoint whose workers remember, and start quicker than those of the plain SDK."""
    options = {"idle_timeout": 600, **options}
    spec = EndpointSpec(name="remember", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(*workers), **options)
    command = (sys.executable, "-m", "flashkit.worker", "remembering_app.py:remember")
    return LocalEndpoint(spec=spec, command=command, cwd=APPS)


@pytest.fixture(params=["plain", "flashkit"])
def endpoint(request, make_endpoint):
    """Make an endpoint whose workers remember: `endpoint(idle_timeout=1)`."""

    def make(**options):
        if request.param == "plain":
            return make_endpoint("remember", "remembering", **options)
        return flashkit_endpoint(**options)

    return make


class Lab:
    """An emulator with one endpoint, and what happened."""

    def __init__(self, emulator, events, wait_until):
        self.emulator = emulator
        self.events = events
        self.until = wait_until

    @property
    def worker(self):
        (worker,) = self.emulator.platform.workers("remember")
        return worker

    @property
    def moments(self):
        return [event.what for event in self.events.of_workers("remember")]

    async def run(self):
        job = self.emulator.submit("remember", JobRequest({}))
        await self.until(lambda: job.status.is_final, seconds=60)
        assert job.status == "COMPLETED", job.error
        return job

    async def idle(self):
        await self.until(lambda: self.worker.state is WorkerState.IDLE)

    def group(self, pid):
        """Return the processes of a worker: its own and those it started."""
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]


@pytest.fixture
def events():
    from tests.emulator.conftest import Events

    return Events()


@pytest.fixture
def start(start_emulator, events, wait_until):
    async def start(*endpoints, **options):
        return Lab(await start_emulator(*endpoints, on_event=events, **options), events, wait_until)

    return start


async def test_an_idle_worker_is_frozen_and_goes_on_with_the_next_job(start, endpoint):
    lab = await start(endpoint(idle_timeout=1), flashboot=True)
    first = await lab.run()
    await lab.until(lambda: lab.worker.state is WorkerState.FROZEN)
    assert {process.status() for process in lab.group(first.output["pid"])} == {psutil.STATUS_STOPPED}
    health = lab.emulator.platform.health("remember")["workers"]
    assert not any(health.values()), "it is not there for anybody who counts, or pays"

    second = await lab.run()
    assert second.worker_id == first.worker_id
    assert second.output["pid"] == first.output["pid"]
    assert second.output["jobs"] == 2
    told = lab.moments
    assert [what for what in told if what in ("starting", "frozen", "thawing")][:3] == ["starting", "frozen", "thawing"]
    begun = [event for event in lab.events.of_job(second.id) if event.status == "IN_PROGRESS"]
    assert begun[0].cold_start_ms is not None, "the thaw is this job's cold start"


async def test_its_polls_meet_broken_connections_after_the_thaw(start, endpoint):
    """What a restored worker has to live with: not one of its sockets leads anywhere."""
    lab = await start(endpoint())
    job = await lab.run()
    await lab.idle()
    pid = job.output["pid"]
    port = int(lab.emulator.url.rpartition(":")[2])

    def connections():
        found = [one for process in lab.group(pid) for one in process.net_connections("tcp")]
        return [one for one in found if one.raddr and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED]

    await lab.until(connections)
    lab.emulator.freeze_worker(lab.worker.id)
    await lab.until(lambda: not connections())
    lab.emulator.thaw_worker(lab.worker.id)
    assert (await lab.run()).output["jobs"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="sockets of other processes are found in /proc")
async def test_connections_of_its_own_to_the_platform_are_stale_after_the_thaw(start, make_endpoint):
    """A client that a handler keeps, and that calls other endpoints, must not think that its connection stands."""
    lab = await start(make_endpoint("remember", "calling"))
    assert [(await lab.run()).output for _ in range(2)] == ["connected", "answered"]
    await lab.idle()
    lab.emulator.freeze_worker(lab.worker.id)
    lab.emulator.thaw_worker(lab.worker.id)
    assert (await lab.run()).output == "stale"
    assert [(await lab.run()).output for _ in range(2)] == ["connected", "answered"]


async def test_a_job_that_comes_while_a_worker_is_being_frozen_thaws_it(start):
    lab = await start(flashkit_endpoint())
    await lab.run()
    for count in range(2, 5):
        await lab.idle()
        lab.emulator.freeze_worker(lab.worker.id)
        assert (await lab.run()).output["jobs"] == count


async def test_a_frozen_worker_is_killed_by_a_reload(start):
    lab = await start(flashkit_endpoint())
    first = await lab.run()
    await lab.idle()
    lab.emulator.freeze_worker(lab.worker.id)
    lab.emulator.restart("remember")
    await lab.until(lambda: not psutil.pid_exists(first.output["pid"]))
    second = await lab.run()
    assert second.output["pid"] != first.output["pid"]
    assert second.output["jobs"] == 1


async def test_a_frozen_worker_does_not_outlive_the_emulator(tmp_path, worker_environ, events, wait_until):
    from flashkit.emulator.server import Emulator

    async with Emulator([flashkit_endpoint()], state_dir=tmp_path, environ=worker_environ, on_event=events) as emulator:
        lab = Lab(emulator, events, wait_until)
        pid = (await lab.run()).output["pid"]
        await lab.idle()
        emulator.freeze_worker(lab.worker.id)
    assert not psutil.pid_exists(pid)


async def test_a_frozen_worker_is_not_kept_for_ever(start):
    lab = await start(flashkit_endpoint(), defaults=PlatformDefaults(frozen_keep=0.5))
    pid = (await lab.run()).output["pid"]
    await lab.idle()
    lab.emulator.freeze_worker(lab.worker.id)
    await lab.until(lambda: not lab.emulator.platform.workers("remember"))
    assert not psutil.pid_exists(pid)


async def test_a_busy_worker_cannot_be_frozen_and_an_idle_one_not_thawed(start):
    lab = await start(flashkit_endpoint())
    await lab.run()
    await lab.idle()
    with pytest.raises(InputError, match="IDLE, so it cannot be thawed"):
        lab.emulator.thaw_worker(lab.worker.id)
    with pytest.raises(InputError, match="there is no worker 'nobody'"):
        lab.emulator.freeze_worker("nobody")
    lab.emulator.freeze_worker(lab.worker.id)
    with pytest.raises(InputError, match="FROZEN, so it cannot be frozen"):
        lab.emulator.freeze_worker(lab.worker.id)


async def test_without_the_option_an_idle_worker_is_stopped(start):
    lab = await start(flashkit_endpoint(idle_timeout=1))
    await lab.run()
    await lab.until(lambda: not lab.emulator.platform.workers("remember"))
    assert "frozen" not in lab.moments


async def test_a_cold_start_takes_its_phases_and_says_so(start):
    lab = await start(flashkit_endpoint(), cold_start=ColdStart(pull_s=0.4, load_s=0.3))
    job = await lab.run()
    told = [(event.what, event.detail) for event in lab.events.of_workers("remember")]
    assert told[:3] == [
        ("initializing", "pulling the image for 0.4 s"),
        ("initializing", "loading the weights for 0.3 s"),
        ("starting", ""),
    ]
    (begun,) = [event for event in lab.events.of_job(job.id) if event.status == "IN_PROGRESS"]
    assert begun.cold_start_ms > 700


async def test_a_reclaimed_worker_has_a_moment_and_its_job_is_done_by_another(start, make_endpoint):
    """A handler that goes on after the notice is killed; the death is not held against the job."""
    lab = await start(make_endpoint("remember", "actions"), defaults=PlatformDefaults(max_attempts=1))
    job = lab.emulator.submit("remember", JobRequest({"do": "sleep", "seconds": 2}))
    await lab.until(lambda: job.status == "IN_PROGRESS", seconds=60)
    first = job.worker_id
    lab.emulator.reclaim_worker(first, grace_s=0.3)
    await lab.until(lambda: job.status.is_final, seconds=60)
    assert (job.status, job.attempt) == ("COMPLETED", 2)
    assert job.worker_id != first
    moments = [event.what for event in lab.events.of_workers("remember") if event.worker_id == first]
    assert moments[-3:] == ["reclaimed", "killed", "exited"]


async def test_a_reclaimed_worker_that_is_idle_goes_at_once(start):
    lab = await start(flashkit_endpoint())
    await lab.run()
    await lab.idle()
    lab.emulator.reclaim_worker(lab.worker.id, grace_s=30)
    await lab.until(lambda: not lab.emulator.platform.workers("remember"))
    assert "killed" not in lab.moments


async def test_cool_kills_frozen_workers_too(start):
    lab = await start(flashkit_endpoint())
    first = await lab.run()
    await lab.idle()
    lab.emulator.freeze_worker(lab.worker.id)
    assert lab.emulator.cool("remember") == 1
    await lab.until(lambda: not lab.emulator.platform.workers("remember"))
    assert lab.emulator.cool("remember") == 0
    assert (await lab.run()).output["pid"] != first.output["pid"]
    lab.emulator.kill_worker(lab.worker.id)
    await asyncio.sleep(0)
    await lab.until(lambda: not lab.emulator.platform.workers("remember"))


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_job_is_done_whatever_happens_to_the_workers(start, seed):
    """Frozen, thawed, reclaimed, killed, without machines, with connections that break: none of it loses a job."""
    lab = await start(
        flashkit_endpoint(idle_timeout=1, workers=(0, 2), scaler_type=ScalerType.REQUEST_COUNT, scaler_value=2),
        flashboot=True,
        seed=seed,
        cold_start=ColdStart(pull_s=0.05),
        defaults=PlatformDefaults(frozen_keep=2, respawn_delay=0.05, drain_grace=5),
    )
    emulator, chance = lab.emulator, random.Random(seed)
    jobs = []
    for _ in range(25):
        jobs += [emulator.submit("remember", JobRequest({})) for _ in range(chance.randrange(3))]
        change = chance.choice(["freeze", "freeze", "freeze", "thaw", "thaw", "reclaim", "kill", "capacity", "faults"])
        workers = emulator.platform.workers("remember")
        if change == "capacity":
            emulator.set_capacity("remember", chance.choice([None, 1]))
        elif change == "faults":
            emulator.faults.set(parse_faults(chance.choice(["drop=0.3", ""])))
        elif workers:
            with contextlib.suppress(InputError):  # not in the right state
                getattr(emulator, f"{change}_worker")(chance.choice(workers).id)
        await asyncio.sleep(chance.random() * chance.choice([0.1, 0.1, 1.5]))
    emulator.set_capacity("remember", None)
    await lab.until(lambda: all(job.status.is_final for job in jobs), seconds=90)
    assert {job.status for job in jobs} == {"COMPLETED"}, [job.error for job in jobs if job.error]
    assert emulator.platform.health("remember")["jobs"]["completed"] == len(jobs)
