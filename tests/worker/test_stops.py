"""Stops that come before their job does, or before it has begun: hand-outs and stops are read from two connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from flashkit import cpu_endpoint, current_job
from flashkit.settings import Settings
from flashkit.worker import runpod_sdk
from flashkit.worker.runpod_sdk import ResultPoster, _EventLoop
from flashkit.worker.runtime import Runtime

NOWHERE = "http://127.0.0.1:9/$ID?"


class Worker(_EventLoop):
    """The worker's loop as the SDK's scaler holds it, fed by hand."""

    def __init__(self, runtime: Runtime, session: aiohttp.ClientSession) -> None:
        self.runtime = runtime
        self.jobs_tasks = {}
        self.job_progress = set()
        self.session = session
        self._prepare()

    def take(self, job_id: str, *, seconds: float = 0.0) -> None:
        """Read a hand-out."""
        poster = ResultPoster(self.session, done_url=NOWHERE, stream_url=NOWHERE)
        self._start_job(self.session, poster, {"id": job_id, "input": {"seconds": seconds}})

    async def until_idle(self) -> None:
        """Return when no job is left."""
        async with asyncio.timeout(5):
            while self.jobs_tasks:
                await asyncio.sleep(0.005)
        assert (self._running, self.job_progress) == (0, set()), "each slot is free again"


@pytest.fixture
def begun() -> list[str]:
    """Ids of the jobs whose handler has begun, in their order."""
    return []


@pytest.fixture
async def worker(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(runpod_sdk, "DELIVERY_SECONDS", 0.0)  # nobody takes results here

    @cpu_endpoint(name="tool")
    async def handle(seconds: float) -> None:
        begun.append(current_job().id)
        await asyncio.sleep(seconds)

    runtime = Runtime(handle.definition, Settings())
    await runtime.start()
    async with aiohttp.ClientSession() as session:
        yield Worker(runtime, session)
    await runtime.stop()


async def test_a_job_that_was_stopped_before_it_came_does_not_begin(worker: Worker, begun: list[str]) -> None:
    assert not await worker.stop_job("early")
    worker.take("early")
    worker.take("other")

    await worker.until_idle()
    assert begun == ["other"]


async def test_a_job_that_is_stopped_before_its_first_step_gives_its_slot_back(worker: Worker) -> None:
    worker.take("quick", seconds=60)
    assert await worker.stop_job("quick")

    await worker.until_idle()


async def test_a_running_job_is_stopped(worker: Worker, begun: list[str]) -> None:
    worker.take("running", seconds=60)
    async with asyncio.timeout(5):
        while not begun:
            await asyncio.sleep(0.005)
    assert await worker.stop_job("running")

    await worker.until_idle()


async def test_a_stop_that_comes_after_the_job_does_not_stop_its_retry(worker: Worker, begun: list[str]) -> None:
    worker.take("again")
    await worker.until_idle()
    assert not await worker.stop_job("again")
    worker.take("again")

    await worker.until_idle()
    assert begun == ["again", "again"]


async def test_an_early_stop_counts_once_and_not_for_long(
    worker: Worker, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.stop_job("early")
    worker.take("early")
    worker.take("early")
    await worker.until_idle()
    assert begun == ["early"]

    monkeypatch.setattr(runpod_sdk, "EARLY_STOP_SECONDS", 0.0)
    await worker.stop_job("late")
    worker.take("late")
    await worker.until_idle()
    assert begun == ["early", "late"]
