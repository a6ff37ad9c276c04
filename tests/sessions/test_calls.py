"""Calls to other endpoints: submitted once, waited for by whichever worker has the session."""

import asyncio
import os
import signal
import time
import uuid
from urllib.parse import urlsplit

import pytest

from flashkit import InputError, JobFailed, JobTimedOut
from flashkit.errors import PayloadTooLarge
from flashkit.protocol import JobStatus
from tests.apps.session_app import agent as called_agent
from tests.apps.session_app import tool
from tests.sessions.servers import Proxy
from tests.sessions.session_lab import until

ENDPOINTS = ("tool", "agent")
pytestmark = pytest.mark.parametrize("lab", ["redis"], indirect=True)


@pytest.fixture
def key() -> str:
    """Work that no other test asks for."""
    return uuid.uuid4().hex


async def caller(site, lab, handler, worker_id="w1"):
    """Return a worker of this process whose calls go to the platform."""
    return await lab.worker(handler, worker_id, base_url=site.base_url)


async def test_a_call_that_completed_is_not_sent_again(site, lab, key):
    crash = [False, True]

    async def agent(session) -> str:
        answer = await session.call(tool, key)
        if crash.pop():
            raise ConnectionError
        return answer["key"]

    worker = await caller(site, lab, agent)
    assert (await worker.error("j1")).type == "ConnectionError"
    assert await worker.answer("j1") == key
    assert len(site.lines("tool", key)) == 1


async def test_arguments_of_a_call_are_checked_before_it_is_awaited(site, lab):
    async def agent(session) -> None:
        with pytest.raises(InputError, match="missing a required argument: 'key'"):
            session.call(tool, yek="a")

    await (await caller(site, lab, agent)).answer("j1")


async def test_the_next_worker_waits_for_the_same_job_and_the_fenced_one_does_not_cancel_it(site, lab, key):
    async def agent(session) -> str:
        return (await session.call(tool, key, seconds=1.0))["key"]

    first, second = await caller(site, lab, agent), await caller(site, lab, agent, "w2")
    hanging = first.start("j1", session_id="s")
    await site.logged("tool", key)
    assert await second.answer("j1", session_id="s") == key
    outcome = await hanging
    assert outcome.error.code == "session_fenced"
    assert len(site.lines("tool", key)) == 1
    assert site.lines("cancelled", key) == []


async def test_a_worker_that_leaves_lets_the_job_run_for_its_successor(site, lab, key):
    async def agent(session) -> list[str]:
        answers = await session.gather(*(session.call(tool, key, seconds=1.0) for _ in range(2)))
        return [answer["key"] for answer in answers]

    first = await caller(site, lab, agent)
    leaving = asyncio.create_task(first.is_handed_back("j1", session_id="s"))
    await site.logged("tool", key, count=2)
    async with asyncio.timeout(10):
        while (await lab.head("s")).seq < 3:  # the turn, and the ids of both jobs
            await asyncio.sleep(0.01)
    first.runtime.hand_back()
    async with asyncio.timeout(2):
        assert await leaving
    assert await (await caller(site, lab, agent, "w2")).answer("j1", session_id="s") == [key, key]
    assert len(site.lines("tool", key)) == 2
    assert site.lines("cancelled", key) == []


async def test_the_job_survives_the_kill_of_the_worker_that_waits_for_it(site, lab, key):
    job = await site.client.endpoint("agent").run({"q": key, "seconds": 2.0})
    await site.logged("tool", key)
    os.kill(int(site.lines("first", key)[0][1]), signal.SIGKILL)
    assert await job.output(timeout=30) == [key, key, key]
    assert len(site.lines("tool", key)) == len(site.lines("done", key)) == 1
    assert len(site.lines("first", key)) == len(site.lines("last", key)) == 1
    assert site.lines("first", key)[0][1] != site.lines("last", key)[0][1]


async def test_a_job_that_failed_by_itself_is_not_repeated(site, lab, key):
    async def agent(session) -> None:
        with pytest.raises(JobFailed, match="nothing about"):
            await session.call(tool, key, fails="raise")

    await (await caller(site, lab, agent)).answer("j1")
    assert len(site.lines("tool", key)) == 1


async def test_a_call_that_takes_too_long_is_cancelled_and_can_be_made_again(site, lab, key):
    waits = [60.0, 0.0]

    async def agent(session) -> str:
        return (await session.call(tool, key, seconds=waits.pop(0), timeout=1.0))["key"]

    worker = await caller(site, lab, agent)
    error = await worker.error("j1", session_id="s")
    assert error.code == JobTimedOut.code
    assert "gave session 's' no result in time" in error.message
    await site.logged("cancelled", key)
    assert await worker.answer("j1", session_id="s") == key


async def test_a_resumed_call_has_only_the_time_that_is_left(site, lab, key):
    async def agent(session) -> str:
        return (await session.call(tool, key, seconds=60.0, timeout=3.0))["key"]

    first, second = await caller(site, lab, agent), await caller(site, lab, agent, "w2")
    began = time.monotonic()
    leaving = asyncio.create_task(first.is_handed_back("j1", session_id="s"))
    await site.logged("tool", key)
    async with lab.store() as store:
        await until_attached(store, "s")
    first.runtime.hand_back()
    assert await leaving
    await asyncio.sleep(max(0.0, began + 3.1 - time.monotonic()))
    assert (await second.error("j1", session_id="s")).code == JobTimedOut.code
    await site.logged("cancelled", key)
    [job] = [job for job in site.emulator.platform.jobs("tool") if job.input["key"] == key]
    assert job.status is JobStatus.CANCELLED, "not by the platform, which gives a job five seconds at least"


async def until_attached(store, session: str) -> None:
    """Return once the journal has a call's job."""
    async with asyncio.timeout(20):
        while not any(record.kind.name == "ATTACH" for record in (await store.load(session)).records):
            await asyncio.sleep(0.01)


async def test_a_call_has_no_more_time_than_what_is_left_to_the_job_that_makes_it(site, lab, key):
    """The called agent sets no limit of its own; the platform learns how long each job is waited for."""

    async def agent(session) -> list[str]:
        return await session.call(called_agent, key, seconds=60.0, timeout=4.0)

    worker = await caller(site, lab, agent)
    assert (await worker.error("j1")).code == JobTimedOut.code
    await site.logged("cancelled", key)
    [outer] = [job for job in site.emulator.platform.jobs("agent") if job.input.get("q") == key]
    [inner] = [job for job in site.emulator.platform.jobs("tool") if job.input.get("key") == key]
    deadlines = [job.input["_flashkit"]["deadline_ms"] for job in (outer, inner)]
    assert deadlines[0] == deadlines[1]
    for job in (outer, inner):
        assert job.execution_timeout_ms == 5_000, "the platform takes no less"
        assert 60_000 < job.ttl_ms <= 64_000
    assert inner.input["_flashkit"]["retries"] == 2


async def test_a_call_for_which_there_is_no_time_is_not_submitted(site, lab, key):
    async def agent(session) -> str:
        return (await session.call(tool, key, timeout=60.0))["key"]

    worker = await caller(site, lab, agent)
    past = round(time.time() * 1000) - 1
    error = await worker.error("j1", _flashkit={"deadline_ms": past})
    assert error.code == JobTimedOut.code
    assert "there was no time to submit its job" in error.message
    assert site.lines("tool", key) == []


class HoldingProxy(Proxy):
    """A proxy that holds replies back until it is told to let them go."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.released = asyncio.Event()

    async def _replies(self, reader, writer) -> None:
        while data := await reader.read(65536):
            await self.released.wait()
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("why", ["cancelled", "timeout"])
async def test_a_job_whose_id_had_not_come_when_its_waiter_went_is_cancelled(site, lab, key, why):
    async def agent(session) -> None:
        await session.call(tool, key, seconds=60.0, timeout=1.0 if why == "timeout" else None)

    async with HoldingProxy(urlsplit(site.emulator.url).port) as proxy:
        worker = await lab.worker(agent, base_url=f"http://127.0.0.1:{proxy.port}/v2")
        task = worker.start("j1", session_id="s")
        await site.logged("tool", key)
        if why == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert (await task).error.code == JobTimedOut.code
        proxy.released.set()
        await site.logged("cancelled", key)


async def test_a_job_whose_id_could_not_be_written_is_cancelled(site, lab, key):
    async def agent(session) -> None:
        await session.call(tool, key, seconds=60.0)

    worker = await caller(site, lab, agent)
    store = worker.runtime._sessions._store
    commit = store.commit

    async def refuse(lease, records=(), change=None):
        if any(record.kind.name == "ATTACH" for record in records):
            await site.logged("tool", key)
            raise PayloadTooLarge("the journal is full")
        return await commit(lease, records, change)

    store.commit, store.commit_soon = refuse, lambda *call: False
    assert (await worker.error("j1", session_id="s")).code == "payload_too_large"
    await site.logged("cancelled", key)


async def test_a_cancelled_session_cancels_the_job_that_it_waits_for(site, lab, key):
    async def agent(session) -> None:
        await session.call(tool, key, seconds=60.0)

    worker = await caller(site, lab, agent)
    task = worker.start("j1", session_id="s")
    await site.logged("tool", key)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await site.logged("cancelled", key)


async def test_the_failure_of_one_call_cancels_the_jobs_of_the_others(site, lab, key):
    async def agent(session) -> None:
        await session.gather(session.call(tool, key, seconds=60.0), session.step("fail", fail))

    async def fail() -> None:
        await site.logged("tool", key)
        raise ConnectionError

    assert (await (await caller(site, lab, agent)).error("j1")).type == "ConnectionError"
    await site.logged("cancelled", key)


async def test_a_partial_gather_gives_what_came_and_why_the_rest_did_not(site, lab, key):
    async def agent(session) -> list[str]:
        results = await session.gather(
            session.call(tool, key),
            session.call(tool, key, fails="raise"),
            session.call(tool, key, seconds=60.0, timeout=0.5),
            partial=True,
        )
        return [result["key"] if isinstance(result, dict) else type(result).__name__ for result in results]

    assert await (await caller(site, lab, agent)).answer("j1") == [key, "JobFailed", "JobTimedOut"]


async def test_a_platform_that_is_away_for_a_moment_gets_no_second_job(site, lab, key):
    async def agent(session) -> str:
        return (await session.call(tool, key, seconds=2.0))["key"]

    async with Proxy(urlsplit(site.emulator.url).port) as proxy:
        worker = await lab.worker(agent, base_url=f"http://127.0.0.1:{proxy.port}/v2")
        task = worker.start("j1", session_id="s")
        await site.logged("tool", key)
        await until(lambda: worker.runtime._sessions._turns)
        proxy.mode = "refuse"
        proxy.reset()
        await asyncio.sleep(1.0)
        proxy.mode = "pass"
        outcome = await task
    assert outcome.error is None, outcome.error
    assert len(site.lines("tool", key)) == 1


async def test_an_event_in_one_branch_leaves_the_call_of_another_to_finish(site, lab, key):
    async def agent(session, q: str) -> list[object]:
        answer, event = await session.gather(session.call(tool, key, seconds=0.5), session.wait_for("ok"))
        return [answer["key"], event]

    worker = await caller(site, lab, agent)
    assert (await worker.answer("j1", session_id="s", q="a"))["status"] == "waiting"
    assert await worker.answer("j2", session_id="s", event={"name": "ok", "value": 1}) == [key, 1]
    assert len(site.lines("tool", key)) == len(site.lines("done", key)) == 1
