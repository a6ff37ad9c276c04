"""A turn that its platform is about to end is stopped a little before: what ran is kept, and another job goes on."""

import uuid

import pytest

from flashkit import JobFailed
from flashkit.protocol import JobStatus
from flashkit.worker.sessions.store import Status, open_store

ENDPOINTS = ("patient", "patient-caller", "tool")


@pytest.fixture
def key() -> str:
    """A request that no other test makes."""
    return uuid.uuid4().hex


async def head_of(site, session):
    env = site.endpoints[0].env
    store = open_store(env["FLASHKIT_STATE"], namespace=env["FLASHKIT_NAMESPACE"])
    try:
        return await store.head(session)
    finally:
        await store.close()


async def stopped(site, name, key, **data):
    """Run a job that has to be stopped by its worker, and return the error."""
    job = await site.client.endpoint(name).run({"session_id": key, "q": key, **data})
    with pytest.raises(JobFailed) as caught:
        await job.output(timeout=30)
    assert (await job.status()).status is JobStatus.FAILED, "by the worker, not by the platform"
    report = caught.value.report
    assert report.code == "job_timed_out"
    assert f"session {key!r} was stopped before its job's execution timeout" in report.message
    assert f"flashkit sessions resume {key}" in report.hint
    head = await head_of(site, key)
    assert (head.status, head.is_held) == (Status.FAILED, False)
    assert head.reason.startswith("JobTimedOut")
    return report


async def test_a_turn_is_stopped_in_time_and_goes_on_after_its_last_step(site, key):
    report = await stopped(site, "patient", key)
    done = report.details["completed_steps"]
    assert 1 <= done < 4
    job = await site.client.endpoint("patient").run({"session_id": key, "event": None})
    assert await job.output(timeout=30) == [0, 1, 2, 3]
    ran = [int(words[3]) for words in site.lines("step", key)]
    assert ran == [*range(done + 1), *range(done, 4)], "what was done did not run again"
    assert len({words[1] for words in site.lines("step", key)}) == 1, "the worker lives on"
    assert (await head_of(site, key)).reason == ""


async def test_a_handler_that_is_not_to_be_cancelled_stops_at_its_next_step(site, key):
    report = await stopped(site, "patient", key, stubborn=True)
    job = await site.client.endpoint("patient").run({"session_id": key, "event": None})
    assert await job.output(timeout=30) == [0, 1, 2, 3]
    ran = [int(words[3]) for words in site.lines("step", key)]
    assert ran == [0, 1, 2, 3], "the step that would not be cancelled has its result"
    assert report.details["completed_steps"] == len([number for number in ran if number < 3])


async def test_the_job_that_a_stopped_turn_waited_for_runs_on_for_the_next(site, key):
    await stopped(site, "patient-caller", key)
    job = await site.client.endpoint("patient-caller").run({"session_id": key, "event": None})
    assert await job.output(timeout=30) == key
    assert len(site.lines("tool", key)) == 1
    assert site.lines("cancelled", key) == []
