"""Jobs that the platform lost are submitted again, as often as the call allows."""

import uuid

import pytest

from flashkit.protocol import PlatformDefaults
from tests.apps.session_app import tool

ENDPOINTS = ("tool",)
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
