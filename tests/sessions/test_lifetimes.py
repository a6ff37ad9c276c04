"""All keys of a session end together, never before its retention is over, and seldom need to be put off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from flashkit.worker.sessions.records import Kind, Record, Snapshot
from flashkit.worker.sessions.redis_store import session_keys
from flashkit.worker.sessions.store import DAY_S, Change
from tests.sessions.session_lab import commit_soon

WEEK_MS = 7 * DAY_S * 1000


class Clerk:
    """Looks at when keys end."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.client = client
        self.keys = session_keys(namespace, "s")

    async def ends(self) -> list[int]:
        """Return when those that exist end, by the server's clock."""
        ends = [await self.client.pexpiretime(key) for key in self.keys]
        return [end for end in ends if end != -2]

    async def left_ms(self) -> int:
        """Return how long the head has left."""
        return int(await self.client.pttl(self.keys[0]))

    async def set_ends(self, left_ms: int) -> None:
        """Let time go by until no more than this is left."""
        seconds, microseconds = await self.client.time()
        ends = seconds * 1000 + microseconds // 1000 + left_ms
        await self.client.hset(self.keys[0], "ends", ends)
        for key in self.keys:
            await self.client.pexpireat(key, ends)


@pytest.fixture(params=["redis", "valkey"])
def url(request) -> str:
    found: str = request.getfixturevalue("redis_server").url if request.param == "redis" else ""
    return found or request.getfixturevalue("valkey_url")


@pytest.fixture
async def clerk(url, namespace) -> AsyncIterator[Clerk]:
    async with aioredis.from_url(url) as client:
        yield Clerk(client, namespace)


@pytest.fixture
def store(make_store, url):
    return make_store(url)


def result(key: str) -> Record:
    return Record(Kind.RESULT, key, b"1")


async def live(store) -> Any:
    """Make every key that a session can have, but for its events, which live for minutes."""
    lease = await store.acquire("s", "w")
    await store.post("s", "m", b"hello")
    await store.put_blob("s", b"data")
    lease = await store.commit(lease, [result("a")])
    for turn in (1, 2):
        answers = (("m", b"hi"),) if turn == 1 else ()
        lease = await store.commit(lease, (), Change(snapshot=Snapshot(b"{}", turn), history=3, answers=answers))
    return await commit_soon(store, lease, [result("b")])


async def test_all_keys_end_together_and_a_little_later_than_promised(store, clerk):
    await live(store)
    ends = await clerk.ends()
    assert len(ends) == 7
    assert len(set(ends)) == 1
    assert WEEK_MS < await clerk.left_ms() <= WEEK_MS * 65 / 64


async def test_writes_leave_the_end_alone_while_the_retention_lasts(store, clerk):
    lease = await store.acquire("s", "w")
    (before,) = set(await clerk.ends())
    await clerk.set_ends(await clerk.left_ms() - 60_000)
    (later,) = set(await clerk.ends())
    assert before > later
    lease = await commit_soon(store, lease, [result("a")])
    lease = await store.renew(lease)
    await store.post("s", "m", b"hello")
    await store.put_blob("s", b"data")
    await store.commit(lease, [result("b")], Change(snapshot=Snapshot(b"{}", 1), release=True))
    await store.acquire("s", "w")
    assert set(await clerk.ends()) == {later}


@pytest.mark.parametrize("write", ["append", "commit", "renew", "post", "blob", "acquire"])
async def test_a_write_puts_every_key_off_once_less_than_the_retention_is_left(store, clerk, write):
    lease = await live(store)
    await clerk.set_ends(60_000)
    match write:
        case "append":
            await commit_soon(store, lease, [result("c")])
        case "commit":
            await store.commit(lease, [result("c")], Change(snapshot=Snapshot(b"{}", 3)))
        case "renew":
            await store.renew(lease)
        case "post":
            await store.post("s", "m2", b"hello")
        case "blob":
            await store.put_blob("s", b"more data")
        case "acquire":
            await store.acquire("s", "w")
    ends = await clerk.ends()
    assert len(ends) == 7
    assert len(set(ends)) == 1
    assert await clerk.left_ms() > WEEK_MS


async def test_another_retention_holds_at_once(store, clerk):
    lease = await live(store)
    lease = await store.commit(lease, (), Change(retain_s=60))
    assert len(set(await clerk.ends())) == 1
    assert 50_000 < await clerk.left_ms() < 61_000
    await store.commit(lease, (), Change(retain_s=DAY_S))
    assert len(set(await clerk.ends())) == 1
    assert await clerk.left_ms() > 80_000_000


async def test_what_outlived_its_session_does_not_belong_to_the_next_one(store, clerk):
    """Workers of earlier versions gave keys ends of their own."""
    await live(store)
    await clerk.client.delete(clerk.keys[0])
    lease = await store.acquire("s", "w")
    lease = await store.commit(lease, [result("new")])
    assert [record.key for record in (await store.load("s")).records] == ["new"]
    assert await store.inbox("s") == []
    await store.delete("s", force=True)

    await live(store)
    await clerk.client.delete(clerk.keys[0])
    assert not (await store.post("s", "m", b"hello")).duplicate
    assert [message.id for message in await store.inbox("s")] == ["m"]
