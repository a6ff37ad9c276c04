"""One HTTP request on its way through the balancer: body up, answer down, both as they come.

Nothing is buffered but a few chunks, so the first byte of a stream is with the client before the last one exists.
Headers that concern one connection only (RFC 9110, 7.6.1) are not passed on. When the client hangs up, the worker
sees its connection close; when the worker does, the client gets a 502, or a broken connection in the middle of an
answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send
from yarl import URL

from flashkit.emulator.answers import send_body
from flashkit.emulator.bodies import DISCARD_LIMIT_BYTES, encode_json
from flashkit.emulator.clock import Clock
from flashkit.emulator.connections import break_connection
from flashkit.emulator.load_balancing.balancer import BalancedRequest, Balancer, Refused
from flashkit.protocol import PlatformDefaults
from flashkit.settings import LOOPBACK

WORKER_HEADER: Final = "x-runpod-worker-id"
REQUEST_HEADER: Final = "x-request-id"
TIMED_OUT_STATUS: Final = 524
"""Documented: the request took longer than 5.5 min."""
BROKEN_STATUS: Final = 502
_HOP_BY_HOP: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_NOT_FOR_WORKERS: Final = _HOP_BY_HOP | {"expect", WORKER_HEADER, REQUEST_HEADER}
_NOT_FOR_CLIENTS: Final = _HOP_BY_HOP | {WORKER_HEADER, REQUEST_HEADER}
"""The platform says these itself."""
_AIOHTTP_ADDS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_CHUNKS_AHEAD: Final = 4
_EXIT_REPORT_SECONDS: Final = 1.0
"""A connection breaks a moment before its worker's end is known."""


@dataclass(slots=True)
class Progress:
    """What is known of an exchange when it ends."""

    arrived_at: float
    worker_id: str | None = None
    began_at: float | None = None
    status: int | None = None
    first_byte_at: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    problem: str | None = None


class ClientHungUp(Exception):
    """There is nobody any more to answer."""


class Upload:
    """The request's body, read ahead by a few chunks so that the client's going away is seen meanwhile."""

    def __init__(self, receive: Receive, progress: Progress, *, limit_bytes: int) -> None:
        self.gone = asyncio.get_running_loop().create_future()
        self.is_too_large = False
        self._has_ended = False
        self._receive = receive
        self._progress = progress
        self._limit_bytes = limit_bytes
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS_AHEAD)
        self._reading = asyncio.ensure_future(self._read())

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()

    async def discard(self) -> None:
        """Read the rest of a body that is refused, so that its sender gets to see the answer."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        discarded = 0
        while not self._has_ended and discarded < DISCARD_LIMIT_BYTES:
            message = await self._receive()
            discarded += len(message.get("body", b""))
            self._has_ended = not message.get("more_body")

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set_result(None)
                return
            if self._has_ended:
                continue
            chunk = message.get("body", b"")
            self._has_ended = not message.get("more_body")
            self._progress.request_bytes += len(chunk)
            if self._progress.request_bytes > self._limit_bytes:
                self.is_too_large = True
                self.gone.set_result(None)
                return
            if chunk:
                await self._chunks.put(chunk)
            if self._has_ended:
                await self._chunks.put(None)


@dataclass(frozen=True, slots=True)
class Way:
    """How an exchange gets to a worker."""

    balancer: Balancer
    defaults: PlatformDefaults
    clock: Clock
    session: aiohttp.ClientSession
    port_of: Callable[[str], int | None]
    """Returns the port of a worker's server, None for one that is gone."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer."""

    way: Way
    request: BalancedRequest
    target: bytes
    """Path and query as the worker gets them."""
    scope: Scope
    send: Send
    progress: Progress
    _has_begun: bool = field(default=False, init=False)

    async def run(self, receive: Receive) -> None:
        """Serve the request to its end, whatever that is."""
        limit = self.way.defaults.request_limit_bytes
        upload = Upload(receive, self.progress, limit_bytes=limit)
        try:
            size_bytes = _announced_bytes(self.scope)
            if size_bytes <= limit:
                await unless(upload.gone, self._relay(upload))
            else:
                await upload.discard()
                await self._refuse(self._too_large(size_bytes))
        except ClientHungUp:
            if upload.is_too_large:
                await upload.discard()
                await self._refuse(self._too_large(self.progress.request_bytes))
            else:
                self.progress.problem = "the client hung up"
        except Refused as exc:
            await self._refuse(exc)
        finally:
            upload.close()

    async def _relay(self, upload: Upload) -> None:
        async with self.way.balancer.worker_for(self.request) as worker_id:
            self.progress.worker_id = worker_id
            self.progress.began_at = self.way.clock.now()
            try:
                await _within(self.way.clock, self.way.defaults.request_timeout, self._ask(worker_id, upload))
            except TimeoutError:
                seconds = self.way.defaults.request_timeout
                hint = "longer work belongs into a queue-based endpoint"
                raise Refused(TIMED_OUT_STATUS, f"the request took longer than {seconds:g} s", hint=hint) from None
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                raise await self._broken(worker_id, exc) from exc

    async def _ask(self, worker_id: str, upload: Upload) -> None:
        port = self.way.port_of(worker_id)
        if port is None:
            raise ConnectionResetError
        headers = list(self._request_headers())
        names = {name for name, _ in headers}
        has_body = "content-length" in names or b"chunked" in _header(self.scope, b"transfer-encoding")
        async with self.way.session.request(
            self.scope["method"],
            URL(f"http://{LOOPBACK}:{port}{self.target.decode('latin-1')}", encoded=True),
            headers=CIMultiDict(headers),
            data=upload.chunks() if has_body else None,
            allow_redirects=False,
            skip_auto_headers=_AIOHTTP_ADDS,
        ) as response:
            await self._begin(worker_id, response)
            async for chunk in response.content.iter_any():
                await self._send_chunk(chunk)
            await self.send({"type": "http.response.body", "body": b""})

    async def _begin(self, worker_id: str, response: aiohttp.ClientResponse) -> None:
        announced = response.content_length or 0
        if announced > self.way.defaults.request_limit_bytes and self.scope["method"] != "HEAD":
            raise Refused(BROKEN_STATUS, f"the answer has {announced:,} bytes", worker=worker_id, **self._limit_facts())
        self._has_begun = True
        self.progress.status = response.status
        self.progress.first_byte_at = self.way.clock.now()
        headers = [*pass_on(response.raw_headers, without=_NOT_FOR_CLIENTS), *self.own_headers()]
        await self.send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def _send_chunk(self, chunk: bytes) -> None:
        self.progress.response_bytes += len(chunk)
        if self.progress.response_bytes > self.way.defaults.request_limit_bytes:
            raise Refused(BROKEN_STATUS, "the answer is over the platform's limit", **self._limit_facts())
        await self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that the platform adds to an answer."""
        headers = [(REQUEST_HEADER.encode(), self.request.id.encode("latin-1"))]
        if self.progress.worker_id is not None:
            headers.append((WORKER_HEADER.encode(), self.progress.worker_id.encode()))
        return headers

    def _request_headers(self) -> Iterable[tuple[str, str]]:
        for name, value in pass_on(self.scope["headers"], without=_NOT_FOR_WORKERS):
            yield name.decode("latin-1"), value.decode("latin-1")
        yield REQUEST_HEADER, self.request.id

    def _too_large(self, size_bytes: int) -> Refused:
        return Refused(
            self.way.defaults.oversize_status,
            f"the body has {size_bytes:,} bytes or more",
            hint="send a URL to the data instead of the data (a bucket or a network volume)",
            **self._limit_facts(),
        )

    def _limit_facts(self) -> dict[str, Any]:
        return {"limit_bytes": self.way.defaults.request_limit_bytes}

    async def _broken(self, worker_id: str, exc: BaseException) -> Refused:
        """Return what to say of a connection to a worker that failed or broke."""
        ended = await exit_report(self.way.balancer, worker_id)
        if ended is not None:
            return Refused(BROKEN_STATUS, f"the worker died: {ended}", worker=worker_id, hint="its log says more")
        if isinstance(exc, aiohttp.ClientConnectorError):
            hint = "let the server listen on 127.0.0.1 or on every address, at the port that PORT names"
            return Refused(BROKEN_STATUS, "the worker does not listen on its port", worker=worker_id, hint=hint)
        reason = str(exc) or type(exc).__name__
        return Refused(BROKEN_STATUS, f"the worker broke the connection: {reason}", worker=worker_id)

    async def _refuse(self, refusal: Refused) -> None:
        self.progress.problem = str(refusal)
        if self._has_begun:
            await break_connection(self.scope)
            return
        self.progress.status = refusal.status
        body = encode_json(refusal.body)
        self.progress.response_bytes = len(body)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.own_headers()]
            await self.send(message)

        await send_body(send_with_headers, refusal.status, body)


def pass_on(headers: Iterable[tuple[bytes, bytes]], *, without: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers that go on to the other side: without these, and those that `Connection` names."""
    named = [(name.lower(), value) for name, value in headers]
    dropped = {part.strip().lower() for name, value in named if name == b"connection" for part in value.split(b",")}
    dropped |= {name.encode() for name in without}
    return [(name, value) for name, value in named if name not in dropped]


async def exit_report(balancer: Balancer, worker_id: str) -> str | None:
    """Return how the worker ended, waiting a moment for the news; None for one that lives."""
    return await balancer.exit_of(worker_id, seconds=_EXIT_REPORT_SECONDS)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _announced_bytes(scope: Scope) -> int:
    text = _header(scope, b"content-length")
    return int(text) if text.isdigit() else 0


async def unless(gone: asyncio.Future[None], work: Coroutine[Any, Any, None]) -> None:
    """Run the work to its end.

    Raises:
        ClientHungUp: The client went away first; the work has been cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise ClientHungUp
    task.result()


async def _within(clock: Clock, seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Run the work to its end.

    Raises:
        TimeoutError: It took longer on this clock; it has been cancelled.
    """
    task = asyncio.ensure_future(work)
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        task.cancel()

    timer = clock.call_at(clock.now() + seconds, end)
    try:
        await asyncio.wait({task})
    finally:
        timer.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if is_late and task.cancelled():
        raise TimeoutError
    task.result()
