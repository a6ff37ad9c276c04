"""Calls of many sessions on one connection: what is asked while the server answers goes out in one write.

A command of redis-py's client takes a connection from the pool, encodes argument by argument and reads its
answer alone. With sessions side by side most of a worker's time per step went there, so scripts take this way.
"""

from __future__ import annotations

import asyncio
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
    """One connection of a pool, opened when needed and again after it broke."""

    def __init__(self, pool: Any, *, attempt_s: float) -> None:
        self._pool = pool
        self._attempt_s = attempt_s
        self._waiting: list[_Call] = []
        self._runner: asyncio.Task[None] | None = None
        self._connection: Any = None

    @property
    def load(self) -> int:
        """How many calls wait; -1 when the lane is idle."""
        return -1 if self._runner is None else len(self._waiting)

    async def call(self, packed: list[bytes]) -> Any:
        """Return the server's answer to one packed command; it is carried out even if the caller is cancelled.

        Raises:
            RedisError: The answer is an error, or the connection broke and nobody knows what became of the call.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(packed, answer))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await answer

    async def close(self) -> None:
        """Wait for calls under way and close the connection."""
        if self._runner is not None:
            await asyncio.wait([self._runner])
        await self._disconnect()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._exchange(self._next_batch())
        finally:
            self._runner = None
            for call in self._waiting:  # only when the loop is shutting down
                call.answer.cancel()

    def _next_batch(self) -> list[_Call]:
        size = count = 0
        for call in self._waiting:
            size += sum(map(len, call.packed))
            count += 1
            if size > _MOST_BYTES_AT_ONCE:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _exchange(self, batch: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._attempt_s):
                if self._connection is None:
                    self._connection = await self._pool.get_connection()
                await self._connection.send_packed_command([part for call in batch for part in call.packed])
                for call in batch:
                    await self._read(call.answer)
        except (RedisError, OSError, TimeoutError) as exc:
            await self._disconnect()
            lost = exc if isinstance(exc, RedisError) else RedisConnectionError(f"the connection broke: {exc!r}")
            for call in batch:
                if not call.answer.done():
                    call.answer.set_exception(lost)

    async def _read(self, answer: asyncio.Future[Any]) -> None:
        try:
            reply = await self._connection.read_response()
        except ResponseError as exc:
            if not answer.done():
                answer.set_exception(exc)
        else:
            if not answer.done():
                answer.set_result(reply)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
