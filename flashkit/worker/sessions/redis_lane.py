"""Calls of many sessions on one connection: what is asked while the server answers goes out in one write.

A command of redis-py's client takes a connection from the pool, encodes argument by argument and reads its
answer alone. With sessions side by side most of a worker's time per step went there, so scripts take this way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

_MOST_BYTES_AT_ONCE: Final = 256 << 10
"""The server shall have work while the rest is written."""

Word = bytes | str | int | tuple[bytes, ...]
"""One argument of a command; in a tuple it comes in pieces."""


def pack(words: Sequence[Word]) -> list[bytes]:
    """Return words as Redis's protocol has them, without the count in front; pieces are not copied together."""
    parts: list[bytes] = []
    for word in words:
        if isinstance(word, tuple):
            parts += (b"$%d\r\n" % sum(map(len, word)), *word, b"\r\n")
            continue
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return parts


def whole(word: Word) -> bytes | str | int:
    """Return a word as redis-py's own commands take it."""
    return b"".join(word) if isinstance(word, tuple) else word


class _Call(NamedTuple):
    """A command on its way, and who waits for what comes back."""

    packed: list[bytes]
    answer: asyncio.Future[Any]


class Lane:
    """One connection of a pool, opened when needed and again after it broke.

    Calls are sent while answers to earlier ones are under way: one task writes, one reads. Answers come in the
    order of the calls, so whatever breaks the connection fails all that were sent and have none yet.
    """

    def __init__(self, pool: Any, *, attempt_s: float) -> None:
        self._pool = pool
        self._attempt_s = attempt_s
        self._waiting: list[_Call] = []
        self._unanswered: deque[_Call] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connection: Any = None

    async def call(self, packed: list[bytes]) -> Any:
        """Return the server's answer to one packed command; it is carried out even if the caller is cancelled.

        Raises:
            RedisError: The answer is an error, or the connection broke and nobody knows what became of the call.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(packed, answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_waiting())
        return await answer

    async def close(self) -> None:
        """Wait for calls under way and close the connection."""
        while tasks := [task for task in (self._sender, self._reader) if task is not None]:
            await asyncio.wait(tasks)
        await self._disconnect()

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send(self._next_batch())
                if self._waiting and self._has_no_reader:
                    self._reader = asyncio.create_task(self._read_answers(self._connection))
        finally:
            self._sender = None
            for call in self._waiting:  # only when the loop is shutting down
                call.answer.cancel()
        if self._has_no_reader:
            self._reader = asyncio.current_task()  # saves a task where calls come one by one
            await self._read_answers(self._connection)

    @property
    def _has_no_reader(self) -> bool:
        """True when answers are to come, and nobody reads them."""
        return self._reader is None and bool(self._unanswered)

    def _next_batch(self) -> list[_Call]:
        size = count = 0
        for call in self._waiting:
            size += sum(map(len, call.packed))
            count += 1
            if size > _MOST_BYTES_AT_ONCE:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _send(self, batch: list[_Call]) -> None:
        connection = None
        self._unanswered.extend(batch)
        try:
            async with asyncio.timeout(self._attempt_s):
                if self._connection is None:
                    self._connection = await self._pool.get_connection()
                connection = self._connection
                await connection.send_packed_command([part for call in batch for part in call.packed])
        except (RedisError, OSError, TimeoutError) as exc:
            await self._break(connection, exc)

    async def _read_answers(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._attempt_s) as timer:
                while self._unanswered:
                    await self._read(connection)
                    renewed = loop.time() + self._attempt_s
                    if renewed - (timer.when() or 0.0) > self._attempt_s / 10:
                        timer.reschedule(renewed)
        except (RedisError, OSError, TimeoutError) as exc:
            await self._break(connection, exc)
        finally:
            if self._reader is asyncio.current_task():
                self._reader = None

    async def _read(self, connection: Any) -> None:
        """Take in the answer to the call that was sent first."""
        reply = error = None
        try:
            reply = await connection.read_response()
        except ResponseError as exc:
            error = exc
        answer = self._unanswered.popleft().answer
        if answer.done():
            return
        if error is None:
            answer.set_result(reply)
        else:
            answer.set_exception(error)

    async def _break(self, connection: Any, exc: Exception) -> None:
        """Give up a connection, and fail the calls whose answers it owes; nothing if the other task has done so."""
        if connection is not self._connection:
            return
        lost = exc if isinstance(exc, RedisError) else RedisConnectionError(f"the connection broke: {exc!r}")
        calls, self._unanswered = self._unanswered, deque()
        await self._disconnect()
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(lost)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        reader, self._reader = self._reader, None
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()  # and wait for it: the pool gives the same connection out again
            await asyncio.wait([reader])
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
