"""The server's HTTP connections: uvicorn's own, which requests can also break, and which keep no more than they must.

uvicorn keeps the head of a request however long it is, and every request that is sent before the one ahead of it
has its answer. Neither has an end of its own, so both have one here.

What a worker sends whole, a post or a poll, can be answered at once, where its bytes are read: a task, a scope's worth
of callbacks and two messages would cost more than the platform's own work for it.

Whether the client of a connection is still there, and whether it read its answer, is asked of the kernel, which knows
before the event loop does.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_LIMIT_BYTES: Final = 128 * 1024
"""A request's line and headers, give or take one read from the socket; browsers and clients stay below 64 KB."""
PIPELINE_LIMIT: Final = 100
"""Requests that wait on one connection for the answer to the one ahead of them."""

_OF_WORKERS: Final = b"/job-"
"""What is in the paths of workers' requests: all others are not worth a try."""
_HEAD_END: Final = b"\r\n\r\n"
_TCP_INFO: Final[int | None] = socket.TCP_INFO if sys.platform == "linux" else None
_ESTABLISHED: Final = 1
"""The first byte of Linux's `struct tcp_info` while neither side has closed the connection."""
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 42\r\nconnection: close\r\n\r\nthe request's head is larger than 128 KiB\n"
)
_ABORT: Final = "flashkit.abort"
_CONNECTION: Final = "flashkit.connection"


class TooManyRequests(Exception):
    """A client sends on and on without waiting for answers; uvicorn answers with 400 and hangs up."""


class Reply(NamedTuple):
    """A whole response, of JSON."""

    status: int
    body: bytes


AtOnce = Callable[[Scope, bytes], Reply | None]
"""Answers a request, of which it gets method, path, query, headers and body; None when that takes the application."""


class BreakableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; each request carries the means to break its connection."""

    _running: Any = None
    """uvicorn's cycle of the request that the application has, which is not the latest one where requests wait."""
    _on_unread: Callable[[], None] | None = None
    _on_end: Callable[[BreakableProtocol], None] | None = None
    _unparsed_bytes = 0
    """What has come since the latest request, or piece of a body, began: heads and trailers."""

    _at_once_body: bytes | None = None
    """What has come of the body of a request that may be answered at once; None while there is none."""
    _ends_with_head = False
    """True while a read is looked at that has nothing behind the first head in it."""

    def __init__(self, *args: Any, at_once: AtOnce, **options: Any) -> None:
        super().__init__(*args, **options)
        self._at_once = at_once
        self.access_log = False  # addresses may hold credentials, whatever the embedding program logs

    def data_received(self, data: bytes) -> None:
        """Take what came, and hang up on a head without an end."""
        self._unparsed_bytes += len(data)
        self._ends_with_head = data.endswith(_HEAD_END) and data.find(_HEAD_END) == len(data) - len(_HEAD_END)
        super().data_received(data)
        if self._at_once_body is not None and not self.transport.is_closing():
            self._begin()
        if self._unparsed_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Take up a request, unless too many wait already."""
        self._unparsed_bytes = 0
        if len(self.pipeline) >= PIPELINE_LIMIT:
            raise TooManyRequests
        if self._is_plain():
            path, _, self.scope["query_string"] = self.url.partition(b"?")
            self.scope["method"] = self.parser.get_method().decode("ascii")
            self.scope["path"] = path.decode("ascii")
            self._at_once_body = b""
        else:
            self._take_up()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unparsed_bytes = 0
        if self._at_once_body is None:
            super().on_body(body)
            return
        self._at_once_body += body  # of one read from the socket: what takes more goes the long way

    def on_message_complete(self) -> None:
        """Answer a whole request at once, or let the application answer it."""
        if self._at_once_body is not None:
            scope: Any = self.scope
            reply = self._at_once(scope, self._at_once_body)
            if reply is not None:
                self._at_once_body = None
                self._write(reply)
                return
            self._begin()
        super().on_message_complete()

    def _is_plain(self) -> bool:
        """Return True for what may be a worker's, when nothing is ahead of it and its answer can be written.

        Of polls, those with nothing behind them: who sends something there has not read the answer.
        """
        method = self.parser.get_method()
        return (
            _OF_WORKERS in self.url
            and self.url.startswith(b"/v2/")
            and (method == b"POST" or (method == b"GET" and self._ends_with_head))
            and (self.cycle is None or self.cycle.response_complete)
            and self.url.isascii()
            and b"%" not in self.url
            and b"#" not in self.url
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _begin(self) -> None:
        """Let the application have the request, with what has come of its body."""
        body, self._at_once_body = self._at_once_body, None
        self._take_up()
        if body:
            super().on_body(body)

    def _take_up(self) -> None:
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def _write(self, reply: Reply) -> None:
        head = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(reply.body)
        self.transport.write(b"".join((STATUS_LINE[reply.status], head, reply.body)))
        self.on_response_complete()

    def on_message_begin(self) -> None:
        """Begin a request: whoever sends one has read the answer to the one before."""
        super().on_message_begin()
        self._unset_keepalive_if_required()  # armed by the answer to one that came in the same read
        self._unparsed_bytes = 0
        self._on_unread = None
        scope: Any = self.scope
        scope[_ABORT] = self.transport.abort
        scope[_CONNECTION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end. A reset, or an end before the answer, says that the answer was not read."""
        is_answered = self.cycle is None or self.cycle.response_complete
        super().connection_lost(exc)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        if self._on_end is not None:
            self._on_end(self)
        if self._on_unread is not None and (exc is not None or not is_answered or self._was_reset()):
            self._on_unread()
        self._on_unread = None

    def has_client(self) -> bool:
        """Return False when the client has closed the connection, also where the event loop has yet to see that."""
        if self.transport.is_closing():
            return False
        if _TCP_INFO is None:
            return True
        try:
            state: bytes = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        except OSError:  # a kernel that does not tell
            return True
        return state[0] == _ESTABLISHED

    def _was_reset(self) -> bool:
        """Return True when the client's machine refused what was written after the client had closed its side."""
        error: int = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error != 0

    @property
    def _socket(self) -> Any:
        return self.transport.get_extra_info("socket")

    def call_at_end(self, callback: Callable[[BreakableProtocol], None]) -> None:
        """Call back when the connection ends, however it does."""
        self._on_end = callback

    def call_if_unread(self, callback: Callable[[], None]) -> None:
        """Call back when the connection ends and the answer to this request was not read."""
        self._on_unread = callback


class WorkerConnections:
    """Which connections to the server are whose, so that those of a worker can be broken together."""

    def __init__(self) -> None:
        self._of: dict[str, set[BreakableProtocol]] = {}
        self._owners: dict[BreakableProtocol, str] = {}
        self.open: Collection[Any] = ()
        """All connections that the server has."""

    def note(self, worker_id: str, scope: Scope) -> None:
        """Take note that a worker sent this request."""
        connection: BreakableProtocol | None = scope.get(_CONNECTION)
        if connection is not None and connection not in self._owners:
            self._owners[connection] = worker_id
            self._of.setdefault(worker_id, set()).add(connection)
            connection.call_at_end(self._forget)

    def break_all(self, worker_id: str, *, ports: Collection[int] = ()) -> None:
        """Break all of a worker's connections, busy and idle ones, and those that come from one of these ports."""
        own = self._of.get(worker_id, set())
        for connection in [*own, *(one for one in self.open if one.client and one.client[1] in ports)]:
            connection.transport.abort()

    def _forget(self, connection: BreakableProtocol) -> None:
        worker_id = self._owners.pop(connection)
        connections = self._of[worker_id]
        connections.remove(connection)
        if not connections:
            del self._of[worker_id]


def is_broken(scope: Scope) -> bool:
    """Return True when the request's connection is gone or about to be, so that no answer can reach its sender."""
    connection: BreakableProtocol | None = scope.get(_CONNECTION)
    return connection is not None and not connection.has_client()


def if_unread(scope: Scope, callback: Callable[[], None]) -> None:
    """Call back when it turns out that the sender of this request did not get its answer.

    The kernel knows: what closes a socket with something unread in it resets the connection. What it has read
    and then forgotten counts as read.
    """
    connection: BreakableProtocol | None = scope.get(_CONNECTION)
    if connection is not None:
        connection.call_if_unread(callback)


async def break_connection(scope: Scope) -> None:
    """Close the request's connection at once: its sender gets no answer, and sees a reset or an end."""
    abort: Callable[[], None] | None = scope.get(_ABORT)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # lets the server see that the connection is gone before the request ends
