"""Calls of many sessions on one connection: several of one round of the event loop go out in one write.

A command of redis-py's client takes a connection from the pool, encodes argument by argument and reads its
answer alone, through a dozen coroutines. With sessions side by side most of a worker's time per step went there,
so scripts take this way: redis-py connects (login, TLS, Sentinel), and from then on the lane is what reads and
writes that connection. Who asks gives a function, which is called with the answer as soon as it is read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError

_READ_BYTES: Final = 256 << 10
_MOST_CALLS_AT_ONCE: Final = 4
_MOST_BYTES_AT_ONCE: Final = 256 << 10
"""The server shall have work while the rest is made and written: else the two wait for each other by turns."""
_NOTHING: Final = object()
_WRONG_SERVER: Final = (ReadOnlyError, RedisConnectionError)
"""Answers after which the pool has to look for another server: the primary is elsewhere, or this one is not ready."""

Then = Callable[[Any], object]
"""Gets the server's answer, or an exception in its place. Must not raise."""


class NoTransport(Exception):
    """This release of redis-py does not show the transport of its connections, so a lane cannot take one over."""


class Lane:
    """One connection of a pool, opened when needed and again after it broke.

    Answers come in the order of the calls, so whatever breaks the connection fails all that were sent and have
    none yet. A call is carried out even if whoever made it has gone.
    """

    def __init__(self, pool: Any, *, attempt_s: float) -> None:
        self._pool = pool
        self.attempt_s = attempt_s
        self._commands: list[bytes] = []
        self._callers: list[Then] = []
        self._line: _Line | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._is_flush_due = False

    @property
    def is_open(self) -> bool:
        """True when a call is sent without waiting for a connection."""
        return self._line is not None

    def send(self, command: bytes, then: Then) -> None:
        """Send a packed command in this round of the loop, or once there is a connection."""
        self._commands.append(command)
        self._callers.append(then)
        if self._line is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
        elif len(self._callers) >= _MOST_CALLS_AT_ONCE:
            self._flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_rest)

    async def call(self, command: bytes) -> Any:
        """Return the server's answer to a packed command.

        Raises:
            RedisError: The answer is an error, or the connection broke and nobody knows what became of the call.
            NoTransport: Calls have to be made through redis-py.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send(command, partial(settle, answer))
        return await answer

    async def close(self) -> None:
        """Wait for calls under way and close the connection."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._line is not None:
            self._flush()
            await self._line.drain()
            self.give_up(self._line, RedisConnectionError("the lane was closed"))
        while self._closing:
            await asyncio.wait(self._closing)

    async def _open(self) -> None:
        lost: Exception = RedisConnectionError("the event loop is shutting down")
        try:
            async with asyncio.timeout(self.attempt_s):
                connection = await self._pool.get_connection()
            self._line = _take_over(connection, self)
            if self._line is None:
                lost = NoTransport("redis-py's connection shows no transport")
                await self._put_back(connection)
        except (RedisError, OSError, TimeoutError) as exc:
            lost = _as_redis_error(exc)
        finally:
            self._opening = None
            if self._line is None:
                callers, self._callers, self._commands = self._callers, [], []
                _answer_all(callers, lost)
        if self._line is not None:
            self._flush()

    def _flush_rest(self) -> None:
        self._is_flush_due = False
        self._flush()

    def _flush(self) -> None:
        if self._line is None or not self._callers:
            return
        commands, self._commands = self._commands, []
        callers, self._callers = self._callers, []
        self._line.send(commands, callers)

    def give_up(self, line: _Line, exc: Exception) -> None:
        """Close a connection and fail the calls whose answers it owes, and those that were to go there."""
        if line is not self._line:
            return
        self._line = None
        self._commands = []
        callers, self._callers = [*line.unanswered, *self._callers], []
        line.unanswered.clear()
        task = asyncio.get_running_loop().create_task(self._put_back(line.connection))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        _answer_all(callers, _as_redis_error(exc))

    async def _put_back(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)


class _Line(asyncio.BufferedProtocol):
    """One connection that was taken over from redis-py."""

    def __init__(self, connection: Any, transport: asyncio.Transport, lane: Lane) -> None:
        self.connection = connection
        self.unanswered: deque[Then] = deque()
        self._transport = transport
        self._lane = lane
        self._attempt_s = lane.attempt_s
        self._loop = asyncio.get_running_loop()
        self._former = transport.get_protocol()
        self._buffer = bytearray(_READ_BYTES)
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_NOTHING,
        )
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    def send(self, commands: Sequence[bytes], callers: Iterable[Then]) -> None:
        """Write what these callers ask."""
        if not self.unanswered:
            self._heard = self._loop.time()
        self.unanswered.extend(callers)
        if self._timer is None:
            self._timer = self._loop.call_later(self._attempt_s, self._check_time)
        for piece in _pieces(commands):
            self._transport.write(piece)

    async def drain(self) -> None:
        """Return when nothing is owed any more, or the connection is lost."""
        if self.unanswered:
            self._drained = self._loop.create_future()
            await self._drained

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: a view, as asyncio's TLS slices it, and a slice of a bytearray is a copy."""
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        """Hand the answers on that have come."""
        reader, unanswered = self._reader, self.unanswered
        self._heard = self._loop.time()
        try:
            reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
            while unanswered and (answer := reader.gets()) is not _NOTHING:
                unanswered.popleft()(answer)
                if isinstance(answer, _WRONG_SERVER):
                    self._lose(answer)
        except InvalidResponse as exc:
            self._lose(exc)
        if not unanswered:
            self._note_drained()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is owed; redis-py's own protocol is told too, for those who wait for the end."""
        self._former.connection_lost(exc)
        self._lose(exc or RedisConnectionError("the server closed the connection"))

    def _check_time(self) -> None:
        """Give up a server that has not answered for too long."""
        self._timer = None
        if not self.unanswered:
            return
        left = self._heard + self._attempt_s - self._loop.time()
        if left <= 0:
            self._lose(TimeoutError())
        else:
            self._timer = self._loop.call_later(left, self._check_time)

    def _lose(self, exc: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lane.give_up(self, exc)
        self._note_drained()

    def _note_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


def _take_over(connection: Any, lane: Lane) -> _Line | None:
    """Read and write a connected connection from now on; None where this redis-py hides its transport."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if transport is None:
        return None
    if transport.is_closing():
        raise RedisConnectionError("the server closed the connection")
    line = _Line(connection, transport, lane)
    transport.set_protocol(line)
    return line


def _pieces(commands: Sequence[bytes]) -> Iterable[bytes]:
    """Yield what is to be written in pieces that are not too large."""
    start = size = 0
    for end, command in enumerate(commands, 1):
        size += len(command)
        if size > _MOST_BYTES_AT_ONCE:
            yield b"".join(commands[start:end])
            start, size = end, 0
    if size:
        yield b"".join(commands[start:])


def _answer_all(callers: Iterable[Then], exc: Exception) -> None:
    for then in callers:
        then(exc)


def settle(answer: asyncio.Future[Any], reply: Any) -> None:
    """Let whoever awaits this future have an answer, if anybody still does."""
    if answer.done():
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)


def _as_redis_error(exc: Exception) -> Exception:
    if isinstance(exc, (RedisError, NoTransport)):
        return exc
    return RedisConnectionError(f"the connection broke: {exc!r}")
