"""One typed route as an ASGI application: arguments in, the function called, its result or error sent.

The function is stopped when the client hangs up and when the endpoint's `execution_timeout_ms` is over. Async
code is cancelled at its next `await`; a sync function runs on in its thread, and keeps its place among the worker's
`concurrency` until it returns.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import MutableMapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from flashkit.errors import ErrorReport, InputError, describe_exception
from flashkit.http_routes import WEBSOCKET, Route
from flashkit.protocol import REQUEST_BODY_LIMIT_BYTES
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec
from flashkit.worker.calling import Caller, describe_failure, is_cancelled_from_outside
from flashkit.worker.http.arguments import RouteArguments
from flashkit.worker.http.replies import JSON_LINES, REQUEST_ID, Reply, describe_http_exception, status_of
from flashkit.worker.job import JobContext, enter_job

log = logging.getLogger(__name__)

_BAD_REQUEST: Final = 1008
_FAILED: Final = 1011
_REASON_BYTES: Final = 120
"""A WebSocket's close frame has room for 123."""


class BodyTooLarge(InputError):
    """The body is over the platform's limit."""

    code = "body_too_large"


class RouteApp:
    """Answers the requests of one route."""

    def __init__(
        self, route: Route, spec: EndpointSpec, *, caller: Caller, slots: asyncio.Semaphore, settings: Settings
    ) -> None:
        self.route = route
        self.arguments = RouteArguments(route, spec)
        self._spec = spec
        self._caller = caller
        self._slots = slots
        self._settings = settings
        self._abandoned: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one WebSocket."""
        context = JobContext(_request_id(scope), self._spec.name, report_progress=_show_nowhere)
        enter_job(context)
        if self.route.method == WEBSOCKET:
            await self._serve_socket(WebSocket(scope, receive, send), context)
        else:
            await self._answer(scope, receive, send, context)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, context: JobContext) -> None:
        is_lines = JSON_LINES.decode() in Request(scope).headers.get("accept", "")
        reply = Reply(send, request_id=context.id, is_lines=is_lines)
        try:
            body = await _read_body(receive) if self.arguments.takes_body else b""
        except InputError as exc:
            await reply.send_error(describe_exception(exc, request_id=context.id), 413)
            return
        except ConnectionResetError:
            return
        reads_itself = bool(self.arguments.request_parameters) and not self.arguments.takes_body
        gone = None if reads_itself else asyncio.ensure_future(_hang_up(receive))
        request = Request(scope, receive if gone is None else partial(_told_of, gone))
        work = asyncio.ensure_future(self._work(request, body, reply, context))
        await self._watch(work, gone, reply, context)

    async def _watch(
        self, work: asyncio.Task[None], gone: asyncio.Future[None] | None, reply: Reply, context: JobContext
    ) -> None:
        """Return when the work is done, the client is gone, or the time is over; then the work is stopped."""
        seconds = self._spec.execution_timeout_ms / 1000
        waiting: set[asyncio.Future[None]] = {work} if gone is None else {work, gone}
        try:
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                await reply.send_error(_timed_out(self.route, seconds, context.id), 504)
        finally:
            reply.close()
            if gone is not None:
                gone.cancel()
            if not work.done():
                work.cancel()  # not waited for: a thread cannot be interrupted
                self._abandoned.add(work)
                work.add_done_callback(self._abandoned.discard)

    async def _work(self, request: Request, body: bytes, reply: Reply, context: JobContext) -> None:
        try:
            async with self._slots:
                arguments = self.arguments.parse(request.path_params, request.query_params, body)
                arguments |= dict.fromkeys(self.arguments.request_parameters, request)
                await self._call(arguments, request, reply, context)
        except HTTPException as exc:
            await reply.send_error(describe_http_exception(exc, context.id), exc.status_code, exc.headers)
        except (Exception, SystemExit, asyncio.CancelledError) as exc:  # whatever user code raises is the answer
            if isinstance(exc, asyncio.CancelledError) and is_cancelled_from_outside():
                raise
            await reply.send_error(describe_failure(exc, context, self._settings), status_of(exc))

    async def _call(self, arguments: dict[str, Any], request: Request, reply: Reply, context: JobContext) -> None:
        handler = partial(self.route.function, **arguments)
        if self.arguments.definition.streams:
            async with aclosing(self._caller.iterate(handler, context)) as chunks:
                async for chunk in chunks:
                    await reply.send_chunk(self.arguments.contract.encode_output(chunk))
            await reply.end_stream()
            return
        result = await self._caller.call(handler, context)
        if isinstance(result, Response):
            await result(request.scope, request.receive, reply.send)
        else:
            await reply.send_json(200, self.arguments.contract.encode_output(result))

    async def _serve_socket(self, socket: WebSocket, context: JobContext) -> None:
        try:
            arguments = self.arguments.parse(socket.path_params, socket.query_params, b"")
            arguments |= dict.fromkeys(self.arguments.request_parameters, socket)
            await self.route.function(**arguments)
        except WebSocketDisconnect:
            return
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever user code raises ends this connection only
            report = describe_failure(exc, context, self._settings)
            await _close(socket, _BAD_REQUEST if isinstance(exc, InputError) else _FAILED, report.message)
        else:
            await _close(socket, 1000, "")


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == REQUEST_ID.encode()), b"")
    text = bytes(given).decode("latin-1")
    return text if text and text.isprintable() and len(text) <= _REASON_BYTES else f"req-{uuid.uuid4().hex[:16]}"


async def _read_body(receive: Receive) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLarge: It is larger than the platform lets through.
        ConnectionResetError: The client hung up.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        body += message.get("body", b"")
        if len(body) > REQUEST_BODY_LIMIT_BYTES:
            raise BodyTooLarge(
                f"the body has more than the {REQUEST_BODY_LIMIT_BYTES:,} bytes that the platform takes",
                hint="send a URL to the data instead of the data (a bucket or a network volume)",
                details={"limit_bytes": REQUEST_BODY_LIMIT_BYTES},
            )
        if not message.get("more_body"):
            return bytes(body)


async def _hang_up(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _told_of(gone: asyncio.Future[None]) -> MutableMapping[str, Any]:
    """Stand for the server's `receive` once the body was read: all that can still come is the end."""
    await asyncio.wait({gone})
    return {"type": "http.disconnect"}


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    if WebSocketState.DISCONNECTED in (socket.client_state, socket.application_state):
        return
    short = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
    try:
        await socket.close(code, short)
    except RuntimeError:  # it went away in this moment
        log.debug("the WebSocket was closed by the other side")


def _timed_out(route: Route, seconds: float, request_id: str) -> ErrorReport:
    """Report a request that ran past its load-balanced endpoint's `execution_timeout_ms`."""
    return ErrorReport(
        code="request_timed_out",
        type="HandlerError",
        message=f"{route} did not answer within {seconds:g} s",
        hint="raise execution_timeout_ms up to 330,000; longer work belongs into a queue-based endpoint",
        request_id=request_id,
    )


def _show_nowhere(value: Any) -> None:
    """Drop progress: a request has no status that could show it."""
