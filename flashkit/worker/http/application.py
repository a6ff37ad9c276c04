"""The application of a load-balanced worker: its routes, its mounted applications, and what it says of itself.

`/ping` answers 204 while the worker starts, 200 when it takes requests, 503 when its own check of health fails and
while it leaves. Other requests get 503 unless it is ready. Once it leaves, running requests finish.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from flashkit.errors import ErrorReport
from flashkit.garbage import Collector
from flashkit.http_routes import PING_PATH, WEBSOCKET, HttpDefinition
from flashkit.settings import Settings
from flashkit.telemetry import recorder
from flashkit.worker.calling import Caller, describe_setup_failure
from flashkit.worker.http.lifespan import Lifespan
from flashkit.worker.http.replies import describe_http_exception
from flashkit.worker.http.request_spans import answer_seen
from flashkit.worker.http.route_app import RouteApp

log = logging.getLogger(__name__)

_TRY_AGAIN_LATER = 1013


class Stage(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


class HttpApplication:
    """One endpoint's requests, from the worker's start to its end.

    Raises:
        DefinitionError: A route has a type that is not defined or cannot be checked.
    """

    def __init__(self, definition: HttpDefinition, settings: Settings) -> None:
        self.definition = definition
        self.stage = Stage.STARTING
        self._settings = settings
        self._caller = Caller(definition.spec.concurrency)
        self._slots = asyncio.Semaphore(definition.spec.concurrency)
        self._lifespans = [Lifespan(mount.app) for mount in definition.mounts]
        self._router = self._make_router()
        self._running = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._health_check: asyncio.Task[bool] | None = None
        self._collector = Collector()

    @property
    def has_stuck_threads(self) -> bool:
        """True while a sync handler is still running, so that the process cannot end by itself."""
        return self._caller.has_stuck_threads

    async def start(self) -> None:
        """Run the set-up functions and the start of mounted applications; then take requests.

        Raises:
            SetupError: One of them failed; the cause is chained.
        """
        try:
            for function in self.definition.setup:
                await self._caller.call(function)
            for lifespan in self._lifespans:
                await lifespan.start()
        except (Exception, SystemExit) as exc:
            name = self.definition.spec.name
            raise describe_setup_failure(exc, endpoint=name, settings=self._settings) from exc
        self._collector.relax(is_rare=not self.definition.spec.gpu)
        if self.stage is Stage.STARTING:
            self.stage = Stage.READY

    async def drain(self) -> None:
        """Take no more requests and return when those that run are answered; WebSockets are not waited for."""
        self.stage = Stage.LEAVING
        await self._all_answered.wait()

    async def stop(self) -> None:
        """End the mounted applications and run the teardown functions; failures are logged."""
        self._collector.restore()
        for lifespan in self._lifespans:
            await lifespan.stop()
        for function in self.definition.teardown:
            try:
                await self._caller.call(function)
            except (Exception, SystemExit):
                log.exception("teardown of %s failed", self.definition.spec.name)
        self._caller.close()
        if (spans := recorder()) is not None:
            await asyncio.to_thread(spans.flush)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one WebSocket."""
        if scope["type"] == "http" and scope["path"] == PING_PATH:
            await self.ping(scope, receive, send)
        elif self.stage is not Stage.READY:
            await _refuse(scope, receive, send, stage=self.stage)
        elif scope["type"] == "websocket":
            await self._router(scope, receive, send)
        else:
            self._running += 1
            self._all_answered.clear()
            try:
                await answer_seen(self._router, scope, receive, send, endpoint=self.definition.spec.name)
            finally:
                self._running -= 1
                if not self._running:
                    self._all_answered.set()

    async def ping(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say how the worker is."""
        is_ready = self.stage is Stage.READY
        if self.stage is Stage.STARTING:
            response = Response(status_code=HTTPStatus.NO_CONTENT)
        elif is_ready and await self._is_healthy():
            response = JSONResponse({"status": "healthy"})
        else:
            status = "unhealthy" if is_ready else "leaving"
            response = JSONResponse({"status": status}, HTTPStatus.SERVICE_UNAVAILABLE)
        await response(scope, receive, send)

    async def _is_healthy(self) -> bool:
        """Ask the user's own check, once at a time however many ask."""
        if self.definition.health is None:
            return True
        if self._health_check is None or self._health_check.done():
            self._health_check = asyncio.ensure_future(self._check_health(self.definition.health))
        return await asyncio.shield(self._health_check)

    async def _check_health(self, function: Any) -> bool:
        try:
            # Not in the handlers' threads: when all of them are busy, that is no illness.
            result = await function() if inspect.iscoroutinefunction(function) else await asyncio.to_thread(function)
        except (Exception, SystemExit):
            log.exception("the health function of %s failed", self.definition.spec.name)
            return False
        return result is not False

    def _make_router(self) -> Starlette:
        spec = self.definition.spec
        routes: list[BaseRoute] = []
        for route in self.definition.routes:
            app = RouteApp(route, spec, caller=self._caller, slots=self._slots, settings=self._settings)
            if route.method == WEBSOCKET:
                routes.append(WebSocketRoute(route.path, app))
            else:
                routes.append(Route(route.path, app, methods=[route.method]))
        mounts = sorted(zip(self.definition.mounts, self._lifespans, strict=True), key=lambda item: -len(item[0].path))
        routes += [Mount(mount.path, app=lifespan) for mount, lifespan in mounts]
        router = Starlette(routes=routes, exception_handlers={HTTPException: self._describe_route_error})
        router.router.redirect_slashes = False
        return router

    async def _describe_route_error(self, request: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):
            raise exc
        known = [f"{route.method} {route.path}" for route in self.definition.routes]
        known += [f"anything below {mount.path or '/'}" for mount in self.definition.mounts]
        report = describe_http_exception(exc, request.headers.get("x-request-id", ""))
        message = f"{report.message}: {request.method} {request.url.path}"
        hint = f"endpoint {self.definition.spec.name!r} has {', '.join(known)}"
        return JSONResponse(
            {"error": replace(report, message=message, hint=hint).to_dict()}, exc.status_code, exc.headers
        )


async def _refuse(scope: Scope, receive: Receive, send: Send, *, stage: Stage) -> None:
    """Refuse a request that reached a load-balanced worker before it is ready, or while it leaves."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        return
    report = ErrorReport(
        code="worker_not_ready",
        type="PlatformError",
        message=f"the worker is {stage.value}, so it takes no requests",
        hint="send it again: another worker may take it",
    )
    headers = {"retry-after": "1", "connection": "close"}
    await JSONResponse({"error": report.to_dict()}, HTTPStatus.SERVICE_UNAVAILABLE, headers)(scope, receive, send)
