"""The way in: which requests are for load-balanced endpoints, and everything that serves them.

On Runpod an endpoint has a host of its own, `https://ENDPOINT_ID.api.runpod.ai/PATH`. Here it is
`http://ENDPOINT.localhost:PORT/PATH` where such names are resolved, and `http://127.0.0.1:PORT/lb/ENDPOINT/PATH`
everywhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import aiohttp
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import RouteUnknown, deny, error_body, http_status
from flashkit.emulator.bodies import encode_json
from flashkit.emulator.dispatch import Dispatcher
from flashkit.emulator.events import Event, RequestEvent, WorkerEvent
from flashkit.emulator.load_balancing.balancer import Affinity, BalancedRequest, Balancer
from flashkit.emulator.load_balancing.exchange import REQUEST_HEADER, WORKER_HEADER, Exchange, Progress, Way
from flashkit.emulator.load_balancing.probes import Probes
from flashkit.emulator.load_balancing.sockets import SocketExchange
from flashkit.emulator.supervisor import HttpPorts
from flashkit.errors import FlashkitError, InputError
from flashkit.protocol import PlatformDefaults

PATH_PREFIX: Final = "/lb/"
HOST_SUFFIX: Final = ".localhost"
_HOST_SUFFIX: Final = HOST_SUFFIX.encode()
QUEUE_STATUS: Final = 400
"""Undocumented: the HTTP status of the documented body for a queue-based endpoint's host."""
_LONGEST_ID: Final = 120
_LONGEST_PATH: Final = 2_000
"""In events; thousands of them are remembered."""


class Target(NamedTuple):
    """What a request is for."""

    endpoint: str
    path: str
    """As people read it."""
    raw: bytes
    """Path and query as they came."""


class LoadBalancing:
    """Serves the requests to load-balanced endpoints of one emulator."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        defaults: PlatformDefaults,
        admission: Admission,
        ports_of: Callable[[str], HttpPorts | None],
        resolve: Callable[[str], str] = str,
    ) -> None:
        self._dispatcher = dispatcher
        self._defaults = defaults
        self._admission = admission
        self._ports_of = ports_of
        self._resolve = resolve
        self._stack = AsyncExitStack()
        self.balancer = Balancer(dispatcher, defaults)
        self._probes: Probes | None = None
        self._way: Way | None = None

    async def open(self) -> None:
        """Be ready for workers and requests."""
        # A connection for each request: a server may close an idle one in the moment of its use.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        )
        self._probes = Probes(
            self._dispatcher, self.balancer, ports_of=self._ports_of, defaults=self._defaults, session=session
        )
        self._stack.push_async_callback(self._probes.close)
        clock = self._dispatcher.clock
        self._way = Way(self.balancer, self._defaults, clock, session, self._port_of)

    async def close(self) -> None:
        """Ask no worker any more, and break what is still under way."""
        await self._stack.aclose()

    def notice(self, event: Event) -> None:
        """Learn from an event of a load-balanced endpoint's worker."""
        if not isinstance(event, WorkerEvent) or self._probes is None:
            return
        if self._is_balanced(event.endpoint) or self._probes.is_watching(event.worker_id):
            self.balancer.notice(event)
            self._probes.notice(event)

    def is_for_one(self, scope: Scope) -> bool:
        """Return True for a request that `serve` would serve."""
        return scope["path"].startswith(PATH_PREFIX) or self._name_of_host(scope["headers"]) is not None

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a request that is for such an endpoint; False for any other."""
        target = self._find_target(scope)
        if target is None:
            if scope["type"] != "websocket":
                return False
            await deny(scope, receive, send, 404, error_body(_no_route(scope["path"]).report))
            return True
        try:
            self._admission.check(HTTPConnection(scope))
            spec = self._dispatcher.platform.specs.get(target.endpoint)
            if spec is None:
                raise self._unknown(target.endpoint)
            if not target.raw.startswith(b"/"):
                raise InputError(f"the request's target {target.path!r} is no path", hint="begin it with a slash")
        except FlashkitError as exc:
            await deny(scope, receive, send, http_status(exc, self._defaults), error_body(exc.report))
            return True
        if not spec.load_balanced:
            await deny(scope, receive, send, QUEUE_STATUS, encode_json({"error": "not allowed for QB API"}))
            return True
        await self._relay(target, scope, receive, send)
        return True

    async def _relay(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        if self._way is None:
            raise RuntimeError("requests came before open()")
        headers = HTTPConnection(scope).headers
        is_socket = scope["type"] == "websocket"
        request = BalancedRequest(
            _request_id(headers.get(REQUEST_HEADER, "")),
            target.endpoint,
            Affinity.from_header(headers.get(WORKER_HEADER, "")),
            is_socket=is_socket,
        )
        progress = Progress(self._dispatcher.clock.now())
        try:
            if is_socket:
                await SocketExchange(self._way, request, target.raw, scope, progress).run(receive, send)
            else:
                await Exchange(self._way, request, target.raw, scope, send, progress).run(receive)
        finally:
            method = "WEBSOCKET" if is_socket else scope["method"]
            self._dispatcher.tell(_describe(request, progress, method, target.path, now=self._dispatcher.clock.now()))

    def _find_target(self, scope: Scope) -> Target | None:
        raw = scope.get("raw_path") or scope["path"].encode()
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        if scope["path"].startswith(PATH_PREFIX):
            endpoint, _, path = scope["path"].removeprefix(PATH_PREFIX).partition("/")
            _, _, raw_rest = bytes(raw).removeprefix(PATH_PREFIX.encode()).partition(b"/")
            return Target(self._resolve(endpoint), f"/{path}", b"/" + raw_rest + query)
        name = self._name_of_host(scope["headers"])
        return None if name is None else Target(name, scope["path"], bytes(raw) + query)

    def _name_of_host(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the endpoint that the request's `Host` names; unknown names lead to the platform itself."""
        given = next((value for name, value in headers if name == b"host"), b"")
        if _HOST_SUFFIX not in given.lower():
            return None
        host = given.decode("latin-1")
        name = host.rpartition(":")[0] or host
        if not name.casefold().endswith(HOST_SUFFIX):
            return None
        name = self._resolve(name.casefold().removesuffix(HOST_SUFFIX))
        return name if name in self._dispatcher.platform.specs else None

    def _is_balanced(self, endpoint: str) -> bool:
        spec = self._dispatcher.platform.specs.get(endpoint)
        return spec is not None and spec.load_balanced

    def _port_of(self, worker_id: str) -> int | None:
        ports = self._ports_of(worker_id)
        return None if ports is None else ports.requests

    def _unknown(self, endpoint: str) -> RouteUnknown:
        specs = self._dispatcher.platform.specs
        names = [name for name in specs if specs[name].load_balanced]
        return RouteUnknown(
            f"there is no load-balanced endpoint {endpoint!r} on this platform",
            hint=f"there is: {', '.join(sorted(names)) or 'none'}",
        )


def _no_route(path: str) -> RouteUnknown:
    return RouteUnknown(f"there is no WebSocket at {path}", hint=f"load-balanced endpoints are below {PATH_PREFIX}")


def _request_id(given: str) -> str:
    is_fine = given and given.isascii() and given.isprintable() and len(given) <= _LONGEST_ID
    return given if is_fine else f"req-{uuid.uuid4().hex[:16]}"


def _describe(request: BalancedRequest, progress: Progress, method: str, path: str, *, now: float) -> RequestEvent:
    began_at, first_byte_at = progress.began_at, progress.first_byte_at
    return RequestEvent(
        endpoint=request.endpoint,
        request_id=request.id,
        method=method,
        path=path[:_LONGEST_PATH],
        status=progress.status,
        worker_id=progress.worker_id,
        wait_ms=_milliseconds((began_at or now) - progress.arrived_at),
        run_ms=None if began_at is None else _milliseconds(now - began_at),
        first_byte_ms=None if first_byte_at is None else _milliseconds(first_byte_at - progress.arrived_at),
        request_bytes=progress.request_bytes,
        response_bytes=progress.response_bytes,
        problem=progress.problem,
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
