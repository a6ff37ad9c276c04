"""The death of an engine under load, and a freeze: real workers with a real vLLM on a real local platform."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashkit.cli.apps import describe_app
from flashkit.client import Client
from flashkit.emulator.events import JobEvent, LogLine, WorkerEvent
from flashkit.emulator.server import Emulator
from flashkit.errors import JobFailed
from flashkit.settings import Settings
from tests.engines.checkpoints import ROOT

APP = """
from flashkit import VLLM, Weights, gpu_endpoint

llm = gpu_endpoint(
    name="llm", gpu="L4", workers=(1, 1), idle_timeout=600,
    engine=VLLM(Weights("tests/tiny-llama"), max_model_len=1024, warmup=["completion"]),
)
"""
LONG = {"prompt": "Serverless workers", "max_tokens": 900, "ignore_eos": True}


class Lab:
    """A local platform with one language model."""

    def __init__(self, emulator: Emulator, client: Client, events: list[Any]) -> None:
        self.emulator = emulator
        self.events = events
        self.llm = client.endpoint("llm")

    def moments(self, what: str) -> list[WorkerEvent]:
        """Return the moments of this kind in workers' lives."""
        return [event for event in self.events if isinstance(event, WorkerEvent) and event.what == what]

    async def until(self, condition: Any, seconds: float = 120.0) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)

    async def start_jobs(self, count: int, **more: Any) -> list[asyncio.Task[Any]]:
        """Return running jobs that take a while."""
        jobs = [asyncio.create_task(self.llm.call({**LONG, **more}, timeout=120)) for _ in range(count)]
        await self.until(lambda: self.running() == count)
        return jobs

    def running(self) -> int:
        """Return how many jobs the platform believes to be running."""
        latest = {event.job_id: event.status for event in self.events if isinstance(event, JobEvent)}
        return sum(status == "IN_PROGRESS" for status in latest.values())

    @staticmethod
    def engine_processes() -> list[psutil.Process]:
        """Return vLLM's own processes below this one."""
        children = psutil.Process().children(recursive=True)
        return [child for child in children if "EngineCore" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""


@asynccontextmanager
async def lab(folder: Path, **options: Any) -> AsyncIterator[Lab]:
    (folder / "app.py").write_text(APP)
    events: list[Any] = []
    env = {"FLASHKIT_WEIGHTS_DIR": str(ROOT), "OMP_NUM_THREADS": "1"}
    endpoints = await describe_app(folder / "app.py", env=env)
    async with (
        Emulator(
            [each.local for each in endpoints], state_dir=folder / "state", on_event=events.append, **options
        ) as emulator,
        Client(Settings(base_url=f"{emulator.url}/v2")) as client,
    ):
        started = Lab(emulator, client, events)
        await started.until(lambda: started.moments("ready"))
        yield started


@pytest.mark.timeout(300)
async def test_the_death_of_an_engine_fails_its_jobs_at_once_and_another_worker_goes_on(tiny_llama, tmp_path):
    async with lab(tmp_path) as world:
        jobs = await world.start_jobs(8)
        [engine] = world.engine_processes()
        os.kill(engine.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        took_seconds = time.monotonic() - killed_at

        failures = [result for result in results if isinstance(result, BaseException)]
        assert failures, "every job was done before the engine was killed"
        for failure in failures:
            assert isinstance(failure, JobFailed)
            assert failure.report.code == "engine_died", failure.report
            assert failure.report.details["retryable"]
        print(f"{len(failures)} of 8 callers were told within {took_seconds:.2f} s")
        await world.until(lambda: world.moments("exited"))
        assert "1" in world.moments("exited")[0].detail  # the exit code says that something was wrong
        assert world.running() == 0

        answer = await world.llm.call({"prompt": "Why", "max_tokens": 4}, timeout=120)
        assert answer["usage"]["completion_tokens"] == 4
        assert len(world.moments("ready")) == 2
    assert world.engine_processes() == []


@pytest.mark.timeout(300)
async def test_an_engine_answers_after_its_worker_was_frozen_and_thawed(tiny_llama, tmp_path):
    async with lab(tmp_path) as world:
        [worker] = {event.worker_id for event in world.moments("ready")}
        [engine] = world.engine_processes()
        group = os.getpgid(engine.pid)
        os.killpg(group, signal.SIGSTOP)
        await asyncio.sleep(4)
        os.killpg(group, signal.SIGCONT)
        answer = await world.llm.call({"prompt": "Why", "max_tokens": 4}, timeout=60)
        assert answer["usage"]["completion_tokens"] == 4
        await world.until(lambda: any("stood still" in event.text for event in world.events if _is_line(event)))
        assert {event.worker_id for event in world.moments("ready")} == {worker}
        assert not world.moments("exited")


def _is_line(event: Any) -> bool:
    return isinstance(event, LogLine)
