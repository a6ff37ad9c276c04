"""A worker that has to go gives its sessions back at the next step; another one goes on, and nothing runs twice."""

import asyncio
import os
import signal
import time
import uuid
from pathlib import Path

import pytest

ENDPOINTS = ("stepper", "agent", "tool")


@pytest.fixture
def key() -> str:
    """A request that no other test makes."""
    return uuid.uuid4().hex


async def terminated(pid: int) -> float:
    """Send SIGTERM and return how many seconds the process took to end."""
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}/exe").exists() and is_alive(pid):
            await asyncio.sleep(0.02)
    return time.monotonic() - started


def is_alive(pid: int) -> bool:
    """Say whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [1, 6])
async def test_after_sigterm_the_session_ends_at_its_step_and_goes_on_elsewhere(site, key, number):
    job = await site.client.endpoint("stepper").run({"q": key, "session_id": key})
    steps = await site.logged("step", key, count=number)
    assert await terminated(int(steps[0][1])) < 2.0
    assert await job.output(timeout=30) == sum(range(8))
    lines = site.lines("step", key)
    assert [int(words[3]) for words in lines] == list(range(8))
    assert len({words[1] for words in lines}) == 2


async def test_every_worker_may_go_one_after_the_other(site, key):
    job = await site.client.endpoint("stepper").run({"q": key, "seconds": 0.3})
    for count in (2, 5):
        pid = int((await site.logged("step", key, count=count))[-1][1])
        assert await terminated(pid) < 2.0
    assert await job.output(timeout=30) == sum(range(8))
    lines = site.lines("step", key)
    assert [int(words[3]) for words in lines] == list(range(8))
    assert len({words[1] for words in lines}) == 3


async def test_a_worker_that_waits_for_a_call_goes_at_once_and_the_job_runs_on(site, key):
    job = await site.client.endpoint("agent").run({"q": key, "seconds": 3.0})
    await site.logged("tool", key)
    assert await terminated(int(site.lines("first", key)[0][1])) < 2.0
    assert await job.output(timeout=30) == [key, key, key]
    assert len(site.lines("tool", key)) == len(site.lines("done", key)) == 1
    assert len(site.lines("first", key)) == 1


async def test_a_new_version_of_the_endpoint_takes_the_session_over(site, key):
    """Hot reload: the platform drains the old workers and starts new ones."""
    job = await site.client.endpoint("stepper").run({"q": key})
    await site.logged("step", key, count=2)
    await site.emulator.replace([site.changed(endpoint) for endpoint in site.endpoints])
    assert await job.output(timeout=30) == sum(range(8))
    lines = site.lines("step", key)
    assert [int(words[3]) for words in lines] == list(range(8))
    assert len({words[1] for words in lines}) == 2
