"""Events that nobody asks for: they are refused before they leave no room for the one that is waited for (row 15)."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from flashkit.errors import InboxFull
from flashkit.worker.sessions.store import Change, Limits, Status, open_store

MOST = Limits().inbox_messages


async def ask_for_approval(session, q: str) -> str:
    return f"{q}: {await session.wait_for('approval')}, {len(session.unread_events)} left"


async def send(worker, number, name="nosuch", value=None):
    return await worker.outcome(f"e{number}", session_id="s", event={"name": name, "value": value})


async def test_the_poster_of_one_event_too_many_is_told_and_the_awaited_one_still_arrives(lab):
    worker = await lab.worker(ask_for_approval)
    await worker.answer("j1", session_id="s", q="book")
    for number in range(MOST):
        assert (await send(worker, number)).error is None
    for number in range(MOST, MOST + 3):
        refused = (await send(worker, number)).error
        assert (refused.code, refused.details["waiting"]) == ("inbox_full", MOST)
        assert "always has room" in refused.hint
    assert (await worker.answer("r1", session_id="s", event=None))["status"] == "waiting"
    assert await worker.answer("a1", session_id="s", event={"name": "approval", "value": True}) == (
        f"book: True, {MOST} left"
    )
    head = await lab.head("s")
    assert (head.status, head.unread, head.pending) == (Status.IDLE, MOST, 0)
    async with lab.store() as store:
        with pytest.raises(InboxFull):
            await store.post("s", "between turns", b"{}", event="nosuch")


async def test_the_place_for_the_awaited_event_is_taken_once(store):
    lease = await store.acquire("s", "w")
    await store.commit(lease, change=Change(status=Status.WAITING, awaits="go", unread=MOST - 1, release=True))
    await store.post("s", "m1", b"1", event="other")
    with pytest.raises(InboxFull, match=f"{MOST} messages wait"):
        await store.post("s", "m2", b"1", event="other")
    assert (await store.post("s", "m3", b"1", event="go")).pending == 2
    with pytest.raises(InboxFull):
        await store.post("s", "m4", b"1", event="go")
    assert (await store.post("s", "m3", b"1", event="go")).duplicate


async def test_an_event_that_is_taken_by_a_later_wait_makes_room_for_another(lab):
    async def agent(session, q: str) -> int:
        session.budget(repeats=None)
        await session.wait_for("first")
        for _ in range(MOST):
            await session.wait_for("early")
        return len(session.unread_events)

    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="x")
    for number in range(MOST):
        await send(worker, number, "early")
    assert (await send(worker, 98, "early")).error.code == "inbox_full"
    assert await worker.answer("f", session_id="s", event={"name": "first"}) == 0
    assert (await lab.head("s")).unread == 0


async def test_large_events_that_nobody_took_are_kept_for_a_later_turn_and_then_freed(lab):
    async def agent(session, q: str) -> int:
        session.budget(repeats=None)
        if q == "keep":
            await session.wait_for("go")
            return len(session.unread_events)
        return sum([len(await session.wait_for("large")) for _ in range(MOST)])

    large = "x" * 250_000
    worker = await lab.worker(agent)
    await worker.answer("j1", session_id="s", q="keep")
    for number in range(MOST):
        assert (await send(worker, number, "large", f"{large}{number:02}")).error is None
    assert await worker.answer("g", session_id="s", event={"name": "go"}) == MOST
    async with lab.store() as store:
        assert len((await store.load("s")).snapshot.data) < 10_000
    assert await worker.answer("j2", session_id="s", q="take") == MOST * 250_002
    async with lab.store() as store:
        assert (await store.export("s")).blobs == {}


async def test_a_file_of_an_earlier_version_gets_what_it_lacks_and_keeps_its_sessions(make_store, namespace, tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    old = open_store(url, namespace=namespace)
    await old.release(await old.acquire("s", "w"))
    await old.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as db:
        for column in ("unread", "awaits", "due"):
            db.execute(f"ALTER TABLE head DROP COLUMN {column}")
    store = make_store(url)
    assert (await store.head("s")).unread == 0
    await store.post("s", "m", b"1", event="go")
    assert [head.session for head in await store.due()] == ["s"]
