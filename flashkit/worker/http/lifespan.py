"""The lifespan of a mounted application: told to start before the worker is ready, and to end after its last request.

Applications that do not know the protocol raise at once; they need no start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from typing import Any

from flashkit.http_routes import ASGIApp

log = logging.getLogger(__name__)


class Lifespan:
    """Runs one application's lifespan, and gives its requests the state that it made."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._orders: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._reports: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, with a copy of the state."""
        scope["state"] = {**scope.get("state", {}), **self._state}
        await self._app(scope, receive, send)

    async def start(self) -> None:
        """Return when the application has started, or does not have a lifespan.

        Raises:
            RuntimeError: It could not start.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        running = self._app(scope, self._orders.get, self._reports.put)
        self._task = asyncio.ensure_future(_as_coroutine(running))
        report = await self._tell("lifespan.startup")
        if report is None:
            failure = self._task.exception() if not self._task.cancelled() else None
            log.debug("the mounted application has no lifespan: %r", failure)
            self._task = None
        elif report["type"] == "lifespan.startup.failed":
            raise RuntimeError(
                f"the mounted application did not start: {report.get('message') or 'it did not say why'}"
            )

    async def stop(self) -> None:
        """Let the application end; a failure is logged."""
        if self._task is None:
            return
        report = await self._tell("lifespan.shutdown")
        if report is not None and report["type"] == "lifespan.shutdown.failed":
            log.error("the mounted application did not end well: %s", report.get("message"))
        with contextlib.suppress(Exception):  # it has said so in its report, or said nothing and is gone
            await self._task
        self._task = None

    async def _tell(self, order: str) -> MutableMapping[str, Any] | None:
        """Return the application's report, None when it ended without one."""
        if self._task is None:
            return None
        await self._orders.put({"type": order})
        report = asyncio.ensure_future(self._reports.get())
        await asyncio.wait({self._task, report}, return_when=asyncio.FIRST_COMPLETED)
        if report.done():
            return report.result()
        report.cancel()
        return None if self._reports.empty() else self._reports.get_nowait()


async def _as_coroutine(awaitable: Any) -> None:
    await awaitable
