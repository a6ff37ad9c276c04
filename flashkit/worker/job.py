"""The job that the running code belongs to: `current_job()` inside a handler."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

from flashkit.errors import HandlerError

_current: ContextVar[JobContext | None] = ContextVar("flashkit_current_job", default=None)


class HandBack(BaseException):
    """Ends a handler at a step boundary because its worker must go; the job is run again on another one."""


class JobContext:
    """What a handler may know about its job, and the little it can do besides returning."""

    def __init__(self, job_id: str, endpoint: str, *, report_progress: Callable[[Any], None]) -> None:
        self.id = job_id
        self.endpoint = endpoint
        self.worker_restart_requested = False
        self._cancelled = False
        self._report_progress = report_progress
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    @property
    def cancelled(self) -> bool:
        """True once the platform asked to stop the job; sync handlers look at it, async ones are cancelled."""
        return self._cancelled

    def progress(self, value: Any) -> None:
        """Show `value` as the job's output while it runs. Updates arrive in order, before the result."""
        if threading.get_ident() == self._loop_thread:
            self._report_progress(value)  # at once: a handler that never waits gives the loop no turn
        else:
            self._loop.call_soon_threadsafe(self._report_progress, value)

    def restart_worker(self) -> None:
        """Ask the platform to replace this worker after the job."""
        self.worker_restart_requested = True

    def mark_cancelled(self) -> None:
        """Tell the handler that its result is no longer wanted."""
        self._cancelled = True


def current_job() -> JobContext:
    """Return the job that the calling code runs for, in sync and async handlers.

    Raises:
        HandlerError: There is none: the code was called directly, not through a worker.
    """
    job = _current.get()
    if job is None:
        raise HandlerError(
            "current_job() was called outside of a job",
            hint="use endpoint.local(...) to run the handler as a worker would",
        )
    return job


def current_job_id() -> str | None:
    """Return the id of the current job, or None outside of one."""
    job = _current.get()
    return job.id if job else None


def contain(function: Callable[[], Any]) -> Callable[[], Any]:
    """Call the function in a thread and return what gives its result, or raises its exception, on the loop.

    A future would not carry every exception: one with StopIteration is never done, and a TimeoutError
    arrives without its traceback.
    """
    try:
        value = function()
    except BaseException as exc:  # noqa: BLE001 - it is raised again, where the thread is awaited
        return functools.partial(_raise, exc)
    return lambda: value


def _raise(exc: BaseException) -> NoReturn:
    raise exc


def enter_job(job: JobContext) -> None:
    """Make `job` the current one for the calling task and what it starts."""
    _current.set(job)
