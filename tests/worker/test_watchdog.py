"""The watchdog of an engine, and what a worker does when its engine cannot go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flashkit import Weights, gpu_endpoint
from flashkit.engines import VLLM
from flashkit.errors import ConfigurationError, EngineDied
from flashkit.settings import Settings
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.job import HandBack
from flashkit.worker.runtime import Runtime
from flashkit.worker.watchdog import watch_engine

DEATH = EngineDied("the engine process has ended", details={"retryable": True})
QUICK = {"tick_seconds": 0.01, "check_seconds": 0.02, "hang_seconds": 0.3}


class Model:
    """An engine whose health the test decides."""

    room = 4

    def __init__(self) -> None:
        self.progress = 0
        self.is_busy = False
        self.checks = 0
        self.trouble: BaseException | None = None
        self.silence_seconds = 0.0

    def handle(self) -> Model:
        return self

    async def warm_up(self) -> None:
        pass

    async def open(self, request: EngineRequest) -> EngineResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"{}"
            await asyncio.Event().wait()

        return EngineResponse(200, body(), {"content-type": "application/json"})

    async def check(self) -> None:
        self.checks += 1
        await asyncio.sleep(self.silence_seconds)
        if self.trouble is not None:
            raise self.trouble

    async def close(self) -> None:
        pass


@pytest.fixture
def model() -> Model:
    return Model()


async def verdict(model: Model, **options: Any) -> EngineDied:
    async with asyncio.timeout(20):
        return await watch_engine(model, **{**QUICK, **options})


async def test_a_dead_engine_is_noticed(model):
    model.trouble = DEATH
    assert await verdict(model) is DEATH


async def test_an_engine_that_does_not_answer_is_dead(model):
    model.silence_seconds = 60
    death = await verdict(model, check_budget_seconds=0.05)
    assert "asked whether it is well 0.05 s ago" in death.report.message
    assert death.report.details["retryable"]


async def test_an_engine_that_makes_no_progress_hangs(model):
    model.is_busy = True
    death = await verdict(model)
    assert "has made no progress" in death.report.message
    assert death.report.details["retryable"]


async def test_an_engine_that_makes_progress_or_has_nothing_to_do_is_left_alone(model):
    watching = asyncio.create_task(verdict(model))
    model.is_busy = True
    for _ in range(20):
        model.progress += 1
        await asyncio.sleep(0.03)  # twice as long as it may hang, all together
    model.is_busy = False
    await asyncio.sleep(0.6)
    assert not watching.done()
    watching.cancel()


async def test_an_engine_whose_check_fails_otherwise_is_left_alone(model, caplog):
    model.trouble = ConfigurationError("the metrics cannot be read")
    watching = asyncio.create_task(verdict(model))
    while model.checks < 3:
        await asyncio.sleep(0.01)
    assert not watching.done()
    assert "could not be checked" in caplog.text
    watching.cancel()


async def test_a_worker_that_stood_still_looks_after_its_engine_first(model, caplog):
    caplog.set_level("INFO")
    model.is_busy = True
    watching = asyncio.create_task(verdict(model, check_seconds=3600.0, hang_seconds=1.0))
    await asyncio.sleep(0.05)
    assert model.checks == 0
    time.sleep(2.5)  # the whole loop, as when the process is stopped; much longer than the engine may hang
    await asyncio.sleep(0.1)
    assert model.checks == 1
    assert not watching.done()  # nothing could make progress in a frozen worker
    assert "stood still" in caplog.text
    watching.cancel()


async def test_a_jump_of_the_time_of_day_is_a_freeze_too(model):
    times = iter([1_000.0, 1_000.01, 1_000.0, 1_060.0])
    watching = asyncio.create_task(verdict(model, check_seconds=3600.0, wall_clock=lambda: next(times, 1_060.0)))
    while not model.checks:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert model.checks == 1
    watching.cancel()


def runtime_with(model: Model) -> Runtime:
    @gpu_endpoint(gpu="L4", engine=VLLM(Weights("a/b")), execution_timeout_ms=5_000)
    async def wait(seconds: float, engine: Any) -> str:
        await asyncio.sleep(seconds)
        return "done"

    runtime = Runtime(wait.definition, Settings())
    runtime.engine = model
    return runtime


async def no_chunks(chunk: bytes) -> None:
    raise AssertionError(chunk)


async def test_jobs_that_run_when_the_engine_dies_fail_so_that_they_can_be_sent_again(model):
    runtime = runtime_with(model)
    jobs = [
        asyncio.create_task(runtime.run({"id": f"job-{number}", "input": {"seconds": 60}}, emit=no_chunks))
        for number in range(3)
    ]
    await asyncio.sleep(0.05)
    assert runtime.concurrency == 3 + model.room
    runtime.give_up(DEATH)
    runtime.give_up(EngineDied("again"))  # the first reason counts
    for outcome in await asyncio.gather(*jobs):
        assert outcome.error is not None
        assert outcome.error.code == "engine_died"
        assert outcome.error.message == "the engine process has ended"
        assert outcome.error.details["retryable"]
        assert outcome.restart_worker
    assert runtime.engine_died.is_set()


async def test_a_job_that_comes_after_the_engine_has_died_is_handed_back(model):
    runtime = runtime_with(model)
    runtime.give_up(DEATH)
    with pytest.raises(HandBack):
        await runtime.run({"id": "late", "input": {"seconds": 0}}, emit=no_chunks)


async def test_a_job_is_stopped_a_little_before_the_platform_would_end_it(model):
    runtime = runtime_with(model)
    outcome = await runtime.run({"id": "slow", "input": {"seconds": 60}}, emit=no_chunks)
    assert outcome.error is not None
    assert outcome.error.code == "deadline_exceeded"
    assert outcome.error.message.startswith("the handler was stopped after 4.5 s")
    assert outcome.error.details == {"execution_timeout_ms": 5_000}
    assert not outcome.restart_worker


async def test_a_handler_s_own_timeout_stays_its_own(model):
    @gpu_endpoint(gpu="L4")
    async def impatient() -> str:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
        return "never"

    outcome = await Runtime(impatient.definition, Settings()).run({"id": "a", "input": {}}, emit=no_chunks)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.type) == ("handler_error", "TimeoutError")
