"""Stands between a command and the management API: writes down every exchange, and breaks the network on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.deploy.openapi import Exchange, check

Fault = Callable[[str, str], str | None]
"""Given method and path, what goes wrong: `before` (the request is lost), `after` (the answer is), or nothing."""


class RecordingProxy:
    """Forwards to a local platform's management API, from `async with` on."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.exchanges: list[Exchange] = []
        self.lost: list[str] = []
        """Requests that a fault hit."""
        self.faults: list[Fault] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=16 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    @property
    def writes(self) -> list[Exchange]:
        return [item for item in self.exchanges if item.is_write]

    @property
    def write_lines(self) -> list[str]:
        return [f"{item.method} {item.path}" for item in self.writes]

    def forget(self) -> None:
        self.exchanges.clear()

    def check_all(self) -> None:
        """Fail when anything that went through is not as the vendor describes it."""
        assert self.exchanges
        for exchange in self.exchanges:
            check(exchange)

    def text(self) -> str:
        """Everything that was sent and received, for searching."""
        return json.dumps([[str(item), item.sent, item.received] for item in self.exchanges])

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        fault = next((found for rule in self.faults if (found := rule(request.method, request.path))), None)
        if fault is not None:
            self.lost.append(f"{fault} {request.method} {request.path}")
        if fault == "before":
            return _hang_up(request)
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name in ("Authorization", "Content-Type")}
        async with self._session.request(
            request.method, self.target + request.path_qs, data=body or None, headers=headers
        ) as answer:
            received = await answer.read()
            self.exchanges.append(
                Exchange(
                    request.method,
                    request.path,
                    dict(request.query),
                    _json(body),
                    answer.status,
                    answer.headers,
                    _json(received),
                    fault or "",
                    dict(request.headers),
                )
            )
            if fault == "after":
                return _hang_up(request)
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() in ("content-type", "retry-after", "ratelimit", "ratelimit-policy")
            }
            return web.Response(body=received, status=answer.status, headers=kept)


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode(errors="replace")


def once(method: str, part: str, what: str, *, times: int = 1) -> Fault:
    """Return a fault that strikes the first requests of this method whose path contains this."""
    left = [times]

    def strike(found_method: str, path: str) -> str | None:
        if found_method == method and part in path and left[0] > 0:
            left[0] -= 1
            return what
        return None

    return strike
