"""Single jobs in the test's own process: what a worker does with a job, without a platform around it.

Input is checked, `setup` runs, the handler is called as a worker calls it, and its output is encoded and checked
against the platform's limits. A breakpoint in the handler stops in the debugger. What needs other endpoints, scaling
or death needs `LocalPlatform`.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flashkit.errors import ConfigurationError, ErrorReport, HandlerError
from flashkit.handler import parse_json
from flashkit.settings import Settings

if TYPE_CHECKING:
    from flashkit.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of one job, as JSON values."""

    output: Any = None
    """The handler's output; of a stream, the list of what it yielded."""
    error: ErrorReport | None = None
    """Why it failed; None when it did not."""
    chunks: list[Any] = field(default_factory=list)
    """Partial outputs, in order."""
    progress: list[Any] = field(default_factory=list)
    """Values of `current_job().progress(...)`, in order."""
    wants_restart: bool = False
    """The handler asked for a new worker."""

    def result(self) -> Any:
        """Return the output.

        Raises:
            HandlerError: The job failed; its report says how.
        """
        if self.error is not None:
            raise HandlerError.from_report(self.error)
        return self.output


class LocalWorker:
    """An endpoint set up in this process: `async with LocalWorker(embed) as worker: await worker.run({...})`."""

    def __init__(self, endpoint: Endpoint[..., Any, ..., Any], *, state: str | None = None) -> None:
        """Prepare nothing yet.

        Args:
            endpoint: The decorated function or class.
            state: URL of a store for sessions; by default one of their own, which goes away with them.
        """
        self._definition = endpoint.definition
        self._state = state
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        """Set the endpoint up.

        Raises:
            SetupError: It could not be; the cause is chained.
        """
        from flashkit.worker.runtime import Runtime

        state = self._state
        if state is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flashkit-test-"))
            state = f"sqlite:///{Path(folder) / 'sessions.db'}"
        settings = replace(Settings.from_environment(), state_url=state, show_tracebacks=True)
        self._runtime = Runtime(self._definition, settings)
        try:
            await self._runtime.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Run the endpoint's teardown."""
        await self._runtime.stop()
        self._stack.close()

    async def run(self, data: Any = None, *, job_id: str | None = None) -> JobResult:
        """Run one job; a job that fails is a result as well.

        Args:
            data: The job's input, as JSON values.
            job_id: Its id; a new one by default. A session's job that comes again under its id goes on.
        """
        chunks: list[Any] = []
        progress: list[Any] = []

        async def keep(chunk: bytes) -> None:
            chunks.append(parse_json(chunk))

        job = {"id": job_id or f"test-{uuid.uuid4()}", "input": {} if data is None else data}
        outcome = await asyncio.create_task(self._runtime.run(job, emit=keep, report_progress=progress.append))
        output = None if outcome.output is None else parse_json(outcome.output)
        return JobResult(output, outcome.error, chunks, progress, outcome.restart_worker)


async def run_job_async(
    endpoint: Endpoint[..., Any, ..., Any], data: Any = None, *, job_id: str | None = None, state: str | None = None
) -> JobResult:
    """Set an endpoint up, run one job of it as a worker would, and tear it down; see `run_job`."""
    async with LocalWorker(endpoint, state=state) as worker:
        return await worker.run(data, job_id=job_id)


def run_job(
    endpoint: Endpoint[..., Any, ..., Any], data: Any = None, *, job_id: str | None = None, state: str | None = None
) -> JobResult:
    """Set an endpoint up, run one job of it as a worker would, and tear it down.

    Args:
        endpoint: The decorated function or class.
        data: The job's input, as JSON values; bad input gives a result with an error, as it does for a caller.
        job_id: Its id; a new one by default.
        state: URL of a store for sessions; by default one that goes away with the job.

    Raises:
        SetupError: The endpoint could not be set up.
        ConfigurationError: This is called while an event loop runs.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run_job_async(endpoint, data, job_id=job_id, state=state))
    raise ConfigurationError(
        "run_job() was called from async code", hint="write `await run_job_async(...)` in async tests"
    )
