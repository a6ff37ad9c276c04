"""Sessions whose worker is gone: left to the platform at first, then resumed once, and never those of a person."""

from __future__ import annotations

import asyncio

from flashkit.client import Client
from flashkit.settings import Settings
from flashkit.worker.sessions.overdue import resume_overdue
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Change

TURN = Record(Kind.TURN, "turn:1", b"{}", extra={"request": "j"})


async def test_a_session_without_a_worker_is_resumed_after_a_while_and_a_persons_copy_never(store):
    await store.commit(await store.acquire("gone", "w1", ttl_s=0.05), [TURN])
    await store.commit(await store.acquire("copy", "person-1"), [TURN], Change(release=True))
    await store.commit(await store.acquire("held", "w2", ttl_s=60), [TURN])
    async with asyncio.timeout(20):
        while {head.session for head in await store.due()} != {"gone", "copy"}:
            await asyncio.sleep(0.02)
    async with Client(Settings(base_url="http://127.0.0.1:1/v2")) as client:
        assert await resume_overdue(store, client) == ()
        (done,) = await resume_overdue(store, client, grace_s=0)
        assert (done.session, done.job) == ("gone", None)
        assert "does not tell which endpoint" in done.problem
        assert await resume_overdue(store, client, grace_s=0) == ()  # the claim is another's for a minute
