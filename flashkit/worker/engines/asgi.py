"""Any ASGI application as an engine's answers: a request in, its response in pieces out, no socket between.

The application runs as a task of the job's own context, so that what it logs names the job. It is told of a closed
response as a server would tell it: by `http.disconnect`, upon which vLLM aborts the request and frees its memory.
One that does not end on that is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Self
from urllib.parse import unquote

from flashkit.errors import EngineError
from flashkit.worker.engines.engine import EngineRequest, EngineResponse

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

BUFFER_BYTES: Final = 1 << 20
"""An application that is further ahead of its reader waits."""
GOODBYE_SECONDS: Final = 2.0
"""How long an application may take to end after it was told that its client has gone."""
_SPEC_VERSION: Final = "2.3"
"""As uvicorn says it. From 2.4 on, Starlette's streams learn of a closed connection only when they next send."""


async def open_app(app: App, request: EngineRequest, *, headers: Mapping[str, str] | None = None) -> EngineResponse:
    """Return an application's response as soon as its status is known.

    Args:
        app: The application.
        request: What to ask it; a query may follow the path.
        headers: More request headers.

    Raises:
        EngineError: The application failed before it answered; its exception is chained.
    """
    exchange = _Exchange(request, headers or {})
    exchange.start(app)
    try:
        await exchange.started()
    except BaseException:
        await exchange.aclose()
        raise
    return EngineResponse(exchange.status, exchange, exchange.headers)


class _Exchange(AsyncIterator[bytes]):
    """One request and its response; iterating it gives what the application has sent meanwhile."""

    def __init__(self, request: EngineRequest, headers: Mapping[str, str]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._request = request
        self._body = encode_body(request.body)
        self._scope = make_scope(request, self._body, headers)
        self._buffer = bytearray()
        self._is_complete = False
        self._is_closed = False
        self._is_body_read = False
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        self._read = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, app: App) -> None:
        """Run the application."""
        self._task = asyncio.create_task(self._run(app), name=f"engine {self._request.path}")
        self._task.add_done_callback(self._ended)

    async def started(self) -> None:
        """Wait for the status."""
        while not self.status:
            self._raise_if_ended()
            await self._wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._buffer:
            if self._is_complete or self._is_closed:
                raise StopAsyncIteration
            self._raise_if_ended()
            await self._wait()
        piece = bytes(self._buffer)
        self._buffer.clear()
        self._read.set()
        return piece

    async def aclose(self) -> None:
        """Tell the application that nobody listens any more, and wait until it has ended."""
        self._is_closed = True
        self._gone.set()
        self._read.set()
        if self._task is None or self._task is asyncio.current_task():
            return
        try:
            await asyncio.wait([self._task], timeout=GOODBYE_SECONDS)
        finally:  # also when this is cancelled meanwhile
            self._task.cancel()
        await asyncio.wait([self._task], timeout=GOODBYE_SECONDS)
        if not self._task.done():
            log.warning("%s does not end although its client has gone", self._request.path)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # known from here on: a reader that stops early must not leave a warning behind
        self._changed.set()

    async def _wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _raise_if_ended(self) -> None:
        """Raise what became of an application that has ended without a whole response."""
        if self._task is None or not self._task.done() or self._buffer or self._is_complete:
            return
        where = "in the middle of its answer" if self.status else "before it answered"
        cause = None if self._task.cancelled() else self._task.exception()
        reason = f": {type(cause).__name__}: {cause}" if cause else ""
        raise EngineError(f"the engine stopped {where} to {self._request.path}{reason}") from cause

    async def _run(self, app: App) -> None:
        try:
            await app(self._scope, self._receive, self._send)
        except Exception as exc:
            if not self._is_complete and not self._is_closed:
                raise
            # Starlette raises what it has made a response of, for the server to log it.
            log.error("%s: %s: %s", self._request.path, type(exc).__name__, exc, exc_info=exc)  # noqa: TRY400

    async def _receive(self) -> Message:
        if not self._is_body_read:
            self._is_body_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self._buffer += message.get("body", b"")
            self._is_complete = not message.get("more_body", False)
        self._changed.set()
        while len(self._buffer) > BUFFER_BYTES and not self._is_closed:
            self._read.clear()
            await self._read.wait()
        if self._is_complete:
            self._gone.set()  # a server, too, says that the exchange is over


def encode_body(body: Any) -> bytes:
    """Return a request's body as JSON text; nothing for None."""
    import orjson

    return b"" if body is None else orjson.dumps(body)


def _body_headers(body: bytes) -> dict[str, str]:
    return {"content-type": "application/json", "content-length": str(len(body))} if body else {"content-length": "0"}


def make_scope(request: EngineRequest, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what an ASGI application is told of a request with this body."""
    path, _, query = request.path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": _SPEC_VERSION},
        "http_version": "1.1",
        "method": request.method.upper(),
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in {"host": "engine", "accept": "*/*", **_body_headers(body), **headers}.items()
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
