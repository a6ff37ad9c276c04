"""How a worker calls user code: async code on the loop, sync code in threads, generators step by step.

Sync code runs in threads of one pool, `concurrency` of them: with one, setup and everything after it share a single
thread, which libraries with thread-bound state need. A thread cannot be interrupted: a cancelled sync handler keeps
its slot until it returns, and sees `current_job().cancelled` meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from flashkit.errors import (
    ErrorReport,
    FlashkitError,
    HandlerError,
    HandlerExit,
    SetupError,
    describe_exception,
    user_traceback,
)
from flashkit.settings import Settings
from flashkit.worker.job import JobContext, contain

log = logging.getLogger(__name__)

_DONE: Final = object()


class Caller:
    """Calls the functions of one endpoint."""

    def __init__(self, concurrency: int) -> None:
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="handler")
        self._busy_threads = 0

    @property
    def has_stuck_threads(self) -> bool:
        """True while sync code is still running, so that the process cannot end by itself."""
        return self._busy_threads > 0

    async def call(self, function: Callable[[], Any], context: JobContext | None = None) -> Any:
        """Call a sync function in a thread, an async one here; await whatever awaitable comes back."""
        if inspect.iscoroutinefunction(function):
            return await function()
        result = await self.in_thread(function, context)
        return await result if inspect.isawaitable(result) else result

    async def iterate(self, handler: Callable[[], Any], context: JobContext) -> AsyncGenerator[Any, None]:
        """Yield what the handler's generator yields; it is closed, its `finally` blocks included, before this is."""
        is_generator = inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)
        stream = handler() if is_generator else await self.call(handler, context)
        if inspect.isasyncgen(stream):
            async with aclosing(stream):
                async for chunk in stream:
                    yield chunk
        elif isinstance(stream, Iterator):
            try:
                while (chunk := await self.in_thread(partial(next, stream, _DONE), context)) is not _DONE:
                    yield chunk
            finally:
                if inspect.isgenerator(stream):
                    await self.in_thread(stream.close)  # in the thread that ran it
        else:
            yield stream  # a decorator around the generator function gave something else back

    async def in_thread(self, function: Callable[[], Any], context: JobContext | None = None) -> Any:
        """Run in the pool. When cancelled, wait for the thread, because it cannot be interrupted."""
        variables = contextvars.copy_context()
        self._busy_threads += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, partial(variables.run, contain, function))
        future.add_done_callback(self._thread_done)
        try:
            outcome = await asyncio.shield(future)
        except asyncio.CancelledError:
            if context is not None:
                context.mark_cancelled()
            await asyncio.wait([future])
            raise
        return outcome()

    def close(self) -> None:
        """Start nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _thread_done(self, future: asyncio.Future[Any]) -> None:
        self._busy_threads -= 1


def describe_failure(exc: BaseException, context: JobContext, settings: Settings) -> ErrorReport:
    """Return the report for whatever a handler raised, and log it."""
    if isinstance(exc, SystemExit):
        exc = HandlerExit.from_exit(exc)
    elif isinstance(exc, asyncio.CancelledError):
        error = HandlerError("the handler was cancelled by its own code, not by the platform")
        exc = error.with_traceback(exc.__traceback__)
    if isinstance(exc, FlashkitError):  # the report says it all, and reaches the caller
        log.info("job %s failed: %s", context.id, exc)
    else:
        log.error("job %s failed\n%s", context.id, user_traceback(exc))
    with_traceback = settings.show_tracebacks and not isinstance(exc, FlashkitError)
    return describe_exception(exc, request_id=context.id, with_traceback=with_traceback)


def describe_setup_failure(exc: BaseException, *, endpoint: str, settings: Settings) -> SetupError:
    """Return the error for whatever the set-up of an endpoint raised."""
    failure = HandlerExit.from_exit(exc) if isinstance(exc, SystemExit) else exc
    report = describe_exception(failure, with_traceback=settings.show_tracebacks)
    return SetupError(
        f"endpoint {endpoint!r} could not be set up: {report.type}: {report.message}",
        hint=report.hint or "look at the worker's log for the traceback",
        where=report.where,
        details=report.details,
    )


def is_cancelled_from_outside() -> bool:
    """True when the current task is being cancelled, false when its own code raised CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
