"""Which sessions there are, and which to look at when: sorted sets over all sessions of a namespace.

They are in other slots than the sessions, so no commit writes them. Changes are collected for a moment and
sent together, best effort; heads are always read from the sessions themselves.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from flashkit.errors import FlashkitError
from flashkit.worker.sessions.redis_client import FAILURES, RedisClient

log = logging.getLogger(__name__)

_SHARDS: Final = 16
_FIRST_S: Final = 0.005
_COLLECT_S: Final = 0.1
"""While changes go on coming, they are sent this often."""
_LIFETIME_S: Final = 90 * 86_400
_GONE: Final = -1


class SessionIndex:
    """The sorted sets of one namespace."""

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._client = client
        self._updated = [f"fk1:idx:{{{namespace}:{shard}}}" for shard in range(_SHARDS)]
        self._due = [f"fk1:run:{{{namespace}:{shard}}}" for shard in range(_SHARDS)]
        self._waiting: dict[tuple[str, str], int] = {}
        self._flushing: asyncio.Task[None] | None = None
        # Keeps a read or the end from overtaking changes that are on their way.
        self._sending = asyncio.Lock()

    def note_change(self, session: str, updated_ms: int) -> None:
        """Put a session down as changed."""
        self._waiting[self._updated[_shard(session)], session] = updated_ms
        self._flush_soon()

    def note_due(self, session: str, at_ms: int | None) -> None:
        """Put a session down whose lease or waiting ends then, or as at rest."""
        self._waiting[self._due[_shard(session)], session] = _GONE if at_ms is None else at_ms
        self._flush_soon()

    def forget(self, session: str) -> None:
        """Take a session out that is gone."""
        shard = _shard(session)
        self._waiting[self._updated[shard], session] = _GONE
        self._waiting[self._due[shard], session] = _GONE
        self._flush_soon()

    async def latest(self, *, limit: int, before_ms: int | None) -> list[str]:
        """Return ids of sessions, the last changed first; with what this store has written itself."""
        await self._flush()
        highest = "+inf" if before_ms is None else f"({before_ms}"
        return await self._merge(self._updated, "ZREVRANGEBYSCORE", highest, "-inf", limit=limit, is_descending=True)

    async def due(self, *, limit: int) -> list[str]:
        """Return ids of sessions whose lease or waiting was to end before now, the longest ago first."""
        await self._flush()
        now_ms = await self.now_ms()
        return await self._merge(self._due, "ZRANGEBYSCORE", "-inf", now_ms, limit=limit, is_descending=False)

    async def now_ms(self) -> int:
        """Return the server's time."""
        seconds, microseconds = await self._client.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def close(self) -> None:
        """Send what still waits."""
        async with self._sending:
            if self._flushing is not None:
                self._flushing.cancel()
            await self._send()

    async def _flush(self) -> None:
        async with self._sending:
            await self._send()

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush_for_a_while())

    async def _flush_for_a_while(self) -> None:
        await asyncio.sleep(_FIRST_S)
        while self._waiting:
            await self._flush()
            await asyncio.sleep(_COLLECT_S)

    async def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        try:
            await self._client.run_many(_commands(waiting))
        except (*FAILURES, FlashkitError) as exc:
            log.debug("the index of sessions was not written: %r", exc)

    async def _merge(self, keys: list[str], *words: Any, limit: int, is_descending: bool) -> list[str]:
        command, low, high = words
        shards = await asyncio.gather(
            *(self._client.command(command, key, low, high, "WITHSCORES", "LIMIT", 0, limit) for key in keys)
        )
        scored = [(float(score), name.decode()) for shard in shards for name, score in _scored(shard)]
        scored.sort(reverse=is_descending)
        return [name for _, name in scored[:limit]]


def _commands(waiting: Mapping[tuple[str, str], int]) -> list[tuple[str | int, ...]]:
    """Return the commands that write these scores."""
    scores: defaultdict[str, list[str | int]] = defaultdict(list)
    gone: defaultdict[str, list[str | int]] = defaultdict(list)
    for (key, session), score in waiting.items():
        if score == _GONE:
            gone[key].append(session)
        else:
            scores[key] += (score, session)
    return [
        *(("ZREM", key, *sessions) for key, sessions in gone.items()),
        *(("ZADD", key, *pairs) for key, pairs in scores.items()),
        *(("EXPIRE", key, _LIFETIME_S) for key in scores),
    ]


def _shard(session: str) -> int:
    return zlib.crc32(session.encode()) % _SHARDS


def _scored(reply: Any) -> list[tuple[bytes, Any]]:
    """Return names with scores of one answer, flat or in pairs."""
    if reply and isinstance(reply[0], (list, tuple)):
        return [(name, score) for name, score in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))
