"""The store's clock jumps: sessions change hands early or late, but never have two writers (row 11)."""

import asyncio

import pytest
import redis.asyncio as aioredis

from flashkit.errors import SessionFenced
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.sqlite_store import SqliteStore, wall_clock_ms
from flashkit.worker.sessions.store import Busy, Lease

HOUR_MS = 3_600_000


class JumpingClock:
    """Moves the store's clock: SQLite's is a parameter, and for Redis the end of the lease moves the other way."""

    def __init__(self, server_url: str | None, namespace: str):
        self.offset_ms = 0
        self.server_url = server_url
        self.namespace = namespace

    def __call__(self) -> int:
        return wall_clock_ms() + self.offset_ms

    async def jump(self, by_ms: int) -> None:
        if self.server_url is None:
            self.offset_ms += by_ms
            return
        async with aioredis.from_url(self.server_url) as client:
            await client.hincrby(session_keys(self.namespace, "s")[0], "until", -by_ms)


@pytest.fixture(params=["sqlite", "redis"])
async def store_and_clock(request, tmp_path, namespace, make_store):
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
        yield make_store(url), JumpingClock(url, namespace)
        return
    clock = JumpingClock(None, namespace)
    store = SqliteStore(tmp_path / "sessions.db", namespace=namespace, now_ms=clock)
    yield store, clock
    await store.close()


async def test_a_jump_forward_ends_the_lease_early_and_fences_the_old_owner(store_and_clock):
    store, clock = store_and_clock
    old = await store.commit(await store.acquire("s", "w1"), [Record(Kind.RESULT, "a")])
    await clock.jump(HOUR_MS)
    new = await store.acquire("s", "w2")
    assert (new.fence, new.seq) == (2, 1)
    with pytest.raises(SessionFenced):
        await store.commit(old, [Record(Kind.RESULT, "b")])


async def test_after_a_jump_back_a_dead_owners_session_is_taken_by_its_silent_heartbeat(store_and_clock):
    store, clock = store_and_clock
    dead = await store.acquire("s", "w1", ttl_s=0.05)
    await clock.jump(-HOUR_MS)
    seen = await store.acquire("s", "w2")
    assert isinstance(seen, Busy)
    assert seen.left_s > 3500
    await asyncio.sleep(2 * seen.ttl_s)  # on the waiter's own clock
    new = await store.acquire("s", "w2", witness=seen.heartbeat)
    assert isinstance(new, Lease)
    with pytest.raises(SessionFenced):
        await store.renew(dead)


async def test_after_a_jump_back_an_owner_that_lives_keeps_its_session(store_and_clock):
    store, clock = store_and_clock
    lease = await store.acquire("s", "w1")
    await clock.jump(-HOUR_MS)
    seen = await store.acquire("s", "w2")
    lease = await store.commit(lease, [Record(Kind.RESULT, "a")])
    assert isinstance(await store.acquire("s", "w2", witness=seen.heartbeat), Busy)
    assert (await store.head("s")).lease_left_s <= 15
