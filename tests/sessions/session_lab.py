"""Workers of this process that run an agent's jobs as the platform would hand them out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from flashkit import orchestrator_endpoint
from flashkit.errors import ErrorReport, PayloadTooLarge
from flashkit.handler import parse_json
from flashkit.settings import Settings
from flashkit.worker.job import HandBack
from flashkit.worker.runtime import Outcome, Runtime
from flashkit.worker.sessions.records import Record
from flashkit.worker.sessions.store import NO_CHANGE, Change, Head, Lease, Store, open_store


class Worker:
    """One worker of an orchestrator."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.streamed: list[Any] = []

    def start(self, job_id: str, **data: Any) -> asyncio.Task[Outcome]:
        """Run a job in a task, as the SDK's loop does."""
        return asyncio.create_task(self.runtime.run({"id": job_id, "input": data}, emit=self._emit))

    async def outcome(self, job_id: str, **data: Any) -> Outcome:
        """Run a job to its end."""
        return await self.start(job_id, **data)

    async def answer(self, job_id: str, **data: Any) -> Any:
        """Run a job that has to succeed, and return its output."""
        return output_of(await self.outcome(job_id, **data))

    async def error(self, job_id: str, **data: Any) -> ErrorReport:
        """Run a job that has to fail, and return why."""
        outcome = await self.outcome(job_id, **data)
        assert outcome.error is not None, outcome.output
        return outcome.error

    async def is_handed_back(self, job_id: str, **data: Any) -> bool:
        """Run a job, and say whether it ended without a result because the worker leaves."""
        try:
            await self.outcome(job_id, **data)
        except HandBack:
            return True
        return False

    async def _emit(self, chunk: bytes) -> None:
        self.streamed.append(parse_json(chunk))


class Lab:
    """A store, and as many workers on it as a test wants."""

    def __init__(self, url: str, namespace: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.namespace = namespace
        self._stack = stack

    async def worker(self, handler: Callable[..., Any], worker_id: str = "w1", **settings: Any) -> Worker:
        """Start a worker for an agent; it stops with the test."""
        settings = {
            "state_url": self.url,
            "state_namespace": self.namespace,
            "worker_id": worker_id,
            "base_url": "http://127.0.0.1:1/v2",
            **settings,
        }
        runtime = Runtime(orchestrator_endpoint()(handler).definition, Settings(**settings))
        await runtime.start()
        self._stack.push_async_callback(runtime.stop)
        return Worker(runtime)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Look into the store beside the workers."""
        store = open_store(self.url, namespace=self.namespace)
        try:
            yield store
        finally:
            await store.close()

    async def head(self, session: str) -> Head:
        """Return what the store knows of a session."""
        async with self.store() as store:
            head = await store.head(session)
        assert head is not None
        return head


class Steps:
    """Functions for steps, which remember how often they ran."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def upper(self, text: str) -> str:
        """Shout, in a thread."""
        self.seen.append(text)
        return text.upper()

    async def lower(self, text: str) -> str:
        """Whisper, on the loop."""
        self.seen.append(text)
        return text.lower()

    def fail(self) -> str:
        """Fail as networks do."""
        self.seen.append("fail")
        raise ConnectionError("no network")


def output_of(outcome: Outcome) -> Any:
    """Return the output of a job that succeeded."""
    assert outcome.error is None, outcome.error.render()
    return parse_json(outcome.output or b"null")


async def commit_soon(store: Store, lease: Lease, records: Sequence[Record], change: Change = NO_CHANGE) -> Lease:
    """Commit as a worker does: in one attempt where the store can, and again if that does not tell."""
    told: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
    with contextlib.suppress(PayloadTooLarge):  # nothing was sent: as if it could not be
        if store.commit_soon(lease, records, change, told.set_result) and (moved := await told) is not None:
            return moved
    return await store.commit(lease, records, change)


async def until(condition: Callable[[], Any], *, seconds: float = 5.0) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
