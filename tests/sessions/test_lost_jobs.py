"""Jobs that the platform lost are submitted again, as often as the call allows."""

import asyncio
import uuid

import pytest

from flashkit import JobFailed
from flashkit.protocol import PlatformDefaults
from flashkit.worker.sessions.records import Kind
from tests.apps.session_app import agent as called_agent
from tests.apps.session_app import tool

ENDPOINTS = ("tool", "agent")
DEFAULTS = PlatformDefaults(max_attempts=1, respawn_delay=0.1)
pytestmark = pytest.mark.parametrize("lab", ["redis"], indirect=True)


@pytest.mark.parametrize(("fails", "submissions"), [("die-once", 2), ("die", 2)])
async def test_a_job_whose_worker_died_is_submitted_again_as_often_as_allowed(site, lab, fails, submissions):
    key = uuid.uuid4().hex

    async def agent(session) -> str:
        return (await session.call(tool, key, fails=fails, retries=1))["key"]

    worker = await lab.worker(agent, base_url=site.base_url)
    outcome = await worker.outcome("j1")
    if fails == "die":
        assert outcome.error.code == "worker_died"
    else:
        assert outcome.error is None
    assert len(site.lines("tool", key)) == submissions


async def test_a_job_that_failed_is_made_again_when_its_turn_is(site, lab):
    """A failure is no result: like a step that raised, the call is made anew when the turn is resumed."""
    key = uuid.uuid4().hex

    async def agent(session) -> str:
        return (await session.call(tool, key, fails="raise-once"))["key"]

    worker = await lab.worker(agent, base_url=site.base_url)
    first = await worker.outcome("j1")
    second = await worker.outcome("j1")

    assert first.error.message == f"nothing about {key}"
    assert second.error is None
    assert len(site.lines("tool", key)) == 2


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_called_sessions_calls_are_made_again_no_more_often_than_its_own_call(site, lab, retries):
    """One count of retries goes down the chain: they do not multiply."""
    key = uuid.uuid4().hex

    async def agent(session) -> list[str]:
        return await session.call(called_agent, key, fails="die", retries=retries)

    outcome = await (await lab.worker(agent, base_url=site.base_url)).outcome("j1")
    assert outcome.error.code == "worker_died"
    assert len(site.lines("first", key)) == 1, "what the called session lost is no reason to call it again"
    assert len(site.lines("tool", key)) == 1 + retries


async def test_a_call_without_retries_is_made_anew_when_its_turn_is_retried(site, lab):
    key = uuid.uuid4().hex

    async def agent(session) -> str:
        return (await session.call(tool, key, fails="die-once", retries=0))["key"]

    worker = await lab.worker(agent, base_url=site.base_url)
    assert (await worker.error("j1")).code == "worker_died"
    assert await worker.answer("j1") == key
    assert len(site.lines("tool", key)) == 2


async def test_a_resumed_call_has_only_the_retries_that_are_left(site, lab):
    key = uuid.uuid4().hex

    async def agent(session) -> str:
        return (await session.call(tool, key, seconds=3.0, fails="die-late", retries=1))["key"]

    first, second = [await lab.worker(agent, name, base_url=site.base_url) for name in ("w1", "w2")]
    leaving = asyncio.create_task(first.is_handed_back("j1", session_id="s"))
    async with lab.store() as store, asyncio.timeout(30):
        while await attempts_of_call(store) != [1, 2]:
            await asyncio.sleep(0.02)
    first.runtime.hand_back()
    assert await leaving
    assert (await second.error("j1", session_id="s")).code == "worker_died"
    assert len(site.lines("tool", key)) == 2, "the worker that took over counts from where the first one was"


async def attempts_of_call(store) -> list[int]:
    """Return the number that the journal has with each submission of the session's call."""
    if await store.head("s") is None:
        return []
    return [record.attempt for record in (await store.load("s")).records if record.kind is Kind.ATTACH]


async def test_a_failed_call_that_was_caught_is_not_made_again(site, lab):
    key = uuid.uuid4().hex
    deaths = [True]

    async def agent(session) -> list[str]:
        try:
            found = (await session.call(tool, key, fails="raise-once"))["key"]
        except JobFailed as exc:
            found = exc.report.message
        said = await session.step("next", str.upper, found)
        if deaths:
            deaths.pop()
            raise LookupError
        return [found, said]

    worker = await lab.worker(agent, base_url=site.base_url)
    await worker.error("j1")
    message = f"nothing about {key}"
    assert await worker.answer("j1") == [message, message.upper()]
    assert len(site.lines("tool", key)) == 1
