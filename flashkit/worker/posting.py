"""HTTP posts on connections that are kept, for what a worker sends most: results and pieces of streams.

A general client takes more than four times as long for a post whose answer is a status and nothing else: it makes a
request, a response, a timeout and a cookie jar's opinion for each. Here a connection writes one request at a time and
reads the answer with llhttp, the parser of Node.js. What is rare is left to general clients: `Redirected` tells when it
comes up.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import cached_property
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

IDLE_SECONDS: Final = 15.0
"""An older connection is not used again: balancers and networks forget them, and a frozen worker's are all dead."""
CONNECT_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 600.0
"""For sending a body and getting the answer, as in the SDK's own client: a large result on a slow line takes long."""
_SUCCESS: Final = 200
_REDIRECTION: Final = range(300, 400)


class Redirected(Exception):
    """The server wants the request elsewhere."""


class KeptConnections:
    """Connections to a few servers, as many as there are posts at the same time. Used by one event loop."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Begin without connections; `headers` go with every post."""
        # One line each: nothing in a value begins another header.
        self._headers = "".join(f"{name}: {' '.join(value.split())}\r\n" for name, value in headers.items()).encode()
        self._idle: defaultdict[str, deque[_Connection]] = defaultdict(deque)

    async def post(self, url: str, body: bytes) -> int:
        """Post a body and return the status of the answer, whose own body nobody reads.

        Raises:
            Redirected: The server wants the request elsewhere.
            OSError: The server cannot be reached, does not answer in time, or answers with something that is no HTTP.
        """
        origin, target = _split(url)
        host = origin.partition("://")[2]
        head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        request = b"".join((head.encode(), self._headers, b"\r\n", body))
        connection = self._take_idle(origin)
        if connection is not None:
            try:
                return await self._ask(origin, connection, request)
            except ConnectionError:
                if connection.has_answered:
                    raise
                # The server closed it just when it was used again.
        return await self._ask(origin, await self._connect(origin), request)

    def close(self) -> None:
        """Close all connections that are not in use."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _ask(self, origin: str, connection: _Connection, request: bytes) -> int:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status = await connection.ask(request)
        except BaseException:
            connection.close()  # its answer may still come
            raise
        if connection.is_open:
            self._idle[origin].append(connection)
        if status in _REDIRECTION:
            raise Redirected
        return status

    def _take_idle(self, origin: str) -> _Connection | None:
        """Return the connection that was used last; those that were not for long are closed on the way."""
        idle, oldest = self._idle[origin], asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle and idle[0].used_at < oldest:
            idle.popleft().close()
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, origin: str) -> _Connection:
        address = urlsplit(origin)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise OSError(f"{origin!r} is no web server's address")
        context = self._tls if address.scheme == "https" else None
        async with asyncio.timeout(CONNECT_SECONDS):
            _, protocol = await asyncio.get_running_loop().create_connection(
                _Connection, address.hostname, address.port or (443 if context else 80), ssl=context
            )
        return protocol

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


class _Connection(asyncio.Protocol):
    """One connection, with one request on it at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self.has_answered = False
        """True when the present request got a part of an answer, so that the server has surely read it."""
        self.used_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[int] | None = None
        self._status = 0
        """Of the present request's answer, once that is read."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport

    async def ask(self, request: bytes) -> int:
        """Send a request and return its answer's status. Raises `ConnectionError`."""
        self.has_answered, self._status = False, 0
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection, without waiting for anything."""
        self.is_open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that requests can be sent."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer."""
        if self._answer is None:  # said without being asked: a timeout's notice, mostly
            self.close()
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._end(ConnectionError(f"the server's answer is no HTTP: {exc!r}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request under way: an answer of unknown length ends with its connection."""
        self.is_open = False
        self._end(
            self._status
            or ConnectionResetError(f"the server closed the connection without an answer: {exc or 'end of data'}")
        )

    def on_headers_complete(self) -> None:
        """Take note of an answer's status. Called by the parser."""
        status = self._parser.get_status_code()
        if status >= _SUCCESS:  # "go on" and "early hints" come before the answer
            self._status = status

    def on_message_complete(self) -> None:
        """Give the answer to who asked. Called by the parser."""
        if not self._status:
            return
        self.used_at = self._loop.time()
        if not self._parser.should_keep_alive():
            self.close()
        self._end(self._status)

    def _end(self, outcome: int | ConnectionError) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if isinstance(outcome, int):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)


def _split(url: str) -> tuple[str, str]:
    """Return where to connect to, as scheme and host, and what to ask for there."""
    start = url.find("/", url.find("://") + 3)
    return (url, "/") if start < 0 else (url[:start], url[start:])
