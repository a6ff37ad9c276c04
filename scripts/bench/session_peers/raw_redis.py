"""Raw redis-py: one Lua script a step, which checks the sequence number and appends to a journal. Nothing else.

In the form `fenced` the script also does what keeps two workers apart: it compares incarnation, fence and nonce,
renews the lease by the server's clock, and gives both keys their lifetime anew.
"""

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
APPEND_FENCED = """
local held = redis.call('HMGET', KEYS[1], 'seq', 'inc', 'fence', 'nonce')
if held[2] ~= ARGV[3] or held[3] ~= ARGV[4] or held[4] ~= ARGV[5] then return redis.error_reply('FENCED') end
local seq = tonumber(held[1])
if seq ~= tonumber(ARGV[1]) then return redis.error_reply('SEQ ' .. seq) end
local time = redis.call('TIME')
redis.call('XADD', KEYS[2], string.format('%d-0', seq + 1), 'r', ARGV[2])
redis.call('HSET', KEYS[1], 'seq', seq + 1, 'until', time[1] * 1000 + math.floor(time[2] / 1000) + 15000)
redis.call('PEXPIRE', KEYS[1], 604800000)
redis.call('PEXPIRE', KEYS[2], 604800000)
return seq + 1
"""
LEASE = {"inc": "0123456789abcdef", "fence": "1", "nonce": "fedcba9876543210"}


class RawRedis:
    def __init__(self, client: redis.asyncio.Redis, sha: str, texts: Texts, *, is_fenced: bool) -> None:
        self._client = client
        self._sha = sha
        self._texts = texts
        self._lease = list(LEASE.values()) if is_fenced else []

    async def create(self, session: str) -> None:
        await self._client.set(f"{{{session}}}:s", orjson.dumps(self._texts.initial()))
        await self._client.hset(f"{{{session}}}:m", mapping={**LEASE, "seq": 0})

    async def turn(self, session: str, clock: Clock) -> None:
        meta, journal = f"{{{session}}}:m", f"{{{session}}}:j"
        for step in range(STEPS):
            started = time.perf_counter()
            record = orjson.dumps({"k": step, "o": self._texts.another()})
            await self._client.evalsha(self._sha, 2, meta, journal, step, record, *self._lease)
            clock.steps.append(time.perf_counter() - started)


@asynccontextmanager
async def connect(store: str, texts: Texts, cell: Cell) -> AsyncIterator[RawRedis]:
    is_fenced = cell.form == "fenced"
    async with redis.asyncio.Redis.from_url(store) as client:
        sha = await client.script_load(APPEND_FENCED if is_fenced else APPEND)
        yield RawRedis(client, sha, texts, is_fenced=is_fenced)


if __name__ == "__main__":
    main(connect)
