"""Raw redis-py: one Lua script a step, which checks the sequence number and appends to a journal. Nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import redis.asyncio
from workload import STEPS, Cell, Clock, Texts, main

APPEND = """
local seq = tonumber(redis.call('HGET', KEYS[1], 'seq') or '0')
if seq ~= tonumber(ARGV[1]) then return redis.error_reply('SEQ ' .. seq) end
redis.call('XADD', KEYS[2], string.format('%d-0', seq + 1), 'r', ARGV[2])
redis.call('HSET', KEYS[1], 'seq', seq + 1)
return seq + 1
"""


class RawRedis:
    def __init__(self, client: redis.asyncio.Redis, sha: str, texts: Texts) -> None:
        self._client = client
        self._sha = sha
        self._texts = texts

    async def create(self, session: str) -> None:
        await self._client.set(f"{{{session}}}:s", orjson.dumps(self._texts.initial()))

    async def turn(self, session: str, clock: Clock) -> None:
        meta, journal = f"{{{session}}}:m", f"{{{session}}}:j"
        for step in range(STEPS):
            started = time.perf_counter()
            record = orjson.dumps({"k": step, "o": self._texts.another()})
            await self._client.evalsha(self._sha, 2, meta, journal, step, record)
            clock.steps.append(time.perf_counter() - started)


@asynccontextmanager
async def connect(store: str, texts: Texts, cell: Cell) -> AsyncIterator[RawRedis]:
    async with redis.asyncio.Redis.from_url(store) as client:
        yield RawRedis(client, await client.script_load(APPEND), texts)


if __name__ == "__main__":
    main(connect)
