"""What the emulator's tests share: an HTTP client that shows what was answered, and a list of events."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest

from flashkit.emulator.events import Event, JobEvent, LogLine, WorkerEvent
from flashkit.emulator.server import Emulator


@dataclass
class Answer:
    """One HTTP response."""

    status: int
    body: Any
    headers: dict[str, str]
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        return self.body["error"]


@dataclass
class Events:
    """Everything an emulator told."""

    all: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.all.append(event)

    def of_job(self, job_id: str) -> list[JobEvent]:
        return [event for event in self.all if isinstance(event, JobEvent) and event.job_id == job_id]

    def of_workers(self, endpoint: str) -> list[WorkerEvent]:
        return [event for event in self.all if isinstance(event, WorkerEvent) and event.endpoint == endpoint]

    def lines(self, endpoint: str) -> list[LogLine]:
        return [event for event in self.all if isinstance(event, LogLine) and event.endpoint == endpoint]


@pytest.fixture(scope="module")
def events() -> Events:
    return Events()


@pytest.fixture(scope="module")
async def http() -> AsyncIterator[Callable[..., Any]]:
    """Send a request: `await http("GET", url)`; the body of the answer is read as JSON."""
    async with aiohttp.ClientSession() as session:

        async def send(method: str, url: str, **options: Any) -> Answer:
            if isinstance(options.get("data"), bytes):
                options["data"] = io.BytesIO(options["data"])  # aiohttp warns of large bytes
            started = time.monotonic()
            async with session.request(method, url, **options) as response:
                body = await response.read()
                seconds = time.monotonic() - started
                value = orjson.loads(body) if body else None
                return Answer(response.status, value, dict(response.headers), seconds)

        yield send


@pytest.fixture
def talk(emulator):
    """Send pieces, with a moment between them, and return what comes back until the end or a moment's silence."""

    async def send(*pieces):
        host, port = emulator.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
            with contextlib.suppress(TimeoutError):
                while piece := await asyncio.wait_for(reader.read(65536), 10 if not answer else 0.3):
                    answer += piece
        finally:
            writer.close()
            await writer.wait_closed()
        return answer

    return send


async def until(condition: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """Wait until the condition holds, and return what it says."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return found


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    return until


async def final_job(emulator: Emulator, http: Any, endpoint: str, job_id: str, *, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        answer = await http("GET", f"{emulator.url}/v2/{endpoint}/status/{job_id}")
        if answer.body["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return answer.body
        assert time.monotonic() < end, f"not finished within {seconds} s: {answer.body}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def finished() -> Callable[..., Any]:
    """Poll a job's status until it has ended: `await finished(emulator, http, endpoint, job_id)`."""
    return final_job
